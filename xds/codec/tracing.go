package codec

import (
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"github.com/sluice-mesh/sluice/mesh"
)

// encodeTracing writes the share as random_sampling, which is what Envoy samples of
// the requests without a trace; the other two shares stay at their default, all.
func encodeTracing(t *mesh.Tracing) (*routev3.Tracing, error) {
	if t == nil {
		return nil, nil
	}
	if t.Sampling > mesh.AllPerMillion {
		return nil, at("Sampling", "%d in a million", t.Sampling)
	}
	return &routev3.Tracing{RandomSampling: &typev3.FractionalPercent{
		Numerator: uint32(t.Sampling), Denominator: typev3.FractionalPercent_MILLION,
	}}, nil
}

func decodeTracing(m *routev3.Tracing) (*mesh.Tracing, error) {
	p := m.GetRandomSampling()
	switch {
	case p == nil:
		return nil, nil // what else m may say is found as unread
	case p.GetDenominator() != typev3.FractionalPercent_MILLION:
		return nil, at("random_sampling.denominator", "%s: %w", p.GetDenominator(), errUnsupported)
	case p.GetNumerator() > uint32(mesh.AllPerMillion):
		return nil, at("random_sampling.numerator", "%d in a million", p.GetNumerator())
	}
	return &mesh.Tracing{Sampling: mesh.PerMillion(p.GetNumerator())}, nil
}
