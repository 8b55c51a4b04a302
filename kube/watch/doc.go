// Package watch reads the object set from folders of YAML and keeps it current.
package watch
