package mesh

import (
	"errors"
	"math"
	"strconv"
	"strings"
)

// AnnotationTraceSampling on an HTTPRoute or GRPCRoute says which share of its
// requests starts a trace, as a percentage. It is the node's default without.
const AnnotationTraceSampling = "sluice.dev/trace-sampling"

// Tracing says how the requests of a rule are traced.
type Tracing struct {
	// Sampling is the share of the requests without a trace of their caller's that
	// start one. A caller's own decision is always kept.
	Sampling PerMillion
}

// PerMillion is a share: AllPerMillion is everything.
type PerMillion uint32

// AllPerMillion is the share that is everything.
const AllPerMillion PerMillion = 1_000_000

var errPercentage = errors.New("want a percentage from 0 to 100 with at most four decimals, such as 1, 0.1 or 100")

// ParsePercentage returns the share of a percentage, written with or without its
// sign.
func ParsePercentage(text string) (PerMillion, error) {
	text = strings.TrimSuffix(text, "%")
	if text == "" || strings.Trim(text, "0123456789.") != "" {
		return 0, errPercentage
	}
	v, err := strconv.ParseFloat(text, 64)
	if err != nil || v < 0 || v > 100 {
		return 0, errPercentage
	}
	share := v * 10_000
	if math.Abs(share-math.Round(share)) > 1e-6 {
		return 0, errPercentage
	}
	return PerMillion(math.Round(share)), nil
}
