//go:build !race

package tlsengine

const raceDetector = false
