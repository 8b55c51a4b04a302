package codec

import (
	"fmt"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/sluice-mesh/sluice/mesh"
)

// Keys of a mirror of a weighted cluster, for which Envoy has no field.
const (
	keyMirrorCluster = "cluster"
	keyMirrorShare   = "per_million"
)

func checkMirror(m *mesh.Mirror) error {
	if m.PerMillion > mesh.EveryRequest {
		return at("PerMillion", "%d is more than %d", m.PerMillion, mesh.EveryRequest)
	}
	_, _, err := clusterNameParts(m.Cluster)
	return below("Cluster", err)
}

// encodeMirrors writes the mirrors of a rule as Envoy's request_mirror_policies.
// Envoy would add "-shadow" to the authority, which the Gateway API does not know.
func encodeMirrors(mirrors []*mesh.Mirror) ([]*routev3.RouteAction_RequestMirrorPolicy, error) {
	var out []*routev3.RouteAction_RequestMirrorPolicy
	for i, m := range mirrors {
		if err := checkMirror(m); err != nil {
			return nil, below(fmt.Sprintf("Filters.Mirror[%d]", i), err)
		}
		p := &routev3.RouteAction_RequestMirrorPolicy{Cluster: m.Cluster, DisableShadowHostSuffixAppend: true}
		if m.PerMillion != mesh.EveryRequest {
			p.RuntimeFraction = &corev3.RuntimeFractionalPercent{DefaultValue: &typev3.FractionalPercent{
				Numerator: m.PerMillion, Denominator: typev3.FractionalPercent_MILLION,
			}}
		}
		out = append(out, p)
	}
	return out, nil
}

func decodeMirrors(policies []*routev3.RouteAction_RequestMirrorPolicy) []*mesh.Mirror {
	var out []*mesh.Mirror
	for _, p := range policies {
		m := &mesh.Mirror{Cluster: p.GetCluster(), PerMillion: mesh.EveryRequest}
		if p.GetRuntimeFraction() != nil {
			m.PerMillion = p.GetRuntimeFraction().GetDefaultValue().GetNumerator()
		}
		out = append(out, m)
	}
	return out
}

// encodeBackendMirrors writes the mirrors of a weighted cluster into its metadata.
func encodeBackendMirrors(mirrors []*mesh.Mirror, extra map[string]*structpb.Value) error {
	if len(mirrors) == 0 {
		return nil
	}
	list := &structpb.ListValue{}
	for i, m := range mirrors {
		if err := checkMirror(m); err != nil {
			return below(fmt.Sprintf("Filters.Mirror[%d]", i), err)
		}
		list.Values = append(list.Values, structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{
			keyMirrorCluster: structpb.NewStringValue(m.Cluster),
			keyMirrorShare:   structpb.NewNumberValue(float64(m.PerMillion)),
		}}))
	}
	extra[keyMirrors] = structpb.NewListValue(list)
	return nil
}

func decodeBackendMirrors(extra map[string]*structpb.Value) []*mesh.Mirror {
	var out []*mesh.Mirror
	for _, v := range extra[keyMirrors].GetListValue().GetValues() {
		fields := v.GetStructValue().GetFields()
		share := fields[keyMirrorShare].GetNumberValue()
		out = append(out, &mesh.Mirror{
			Cluster:    fields[keyMirrorCluster].GetStringValue(),
			PerMillion: uint32(min(max(share, 0), 2*mesh.EveryRequest)), // what is too much stays too much
		})
	}
	return out
}

// encodeBackendRedirect writes the redirect of a weighted cluster, which Envoy's do
// not have, as the JSON of Envoy's RedirectAction would be read.
func encodeBackendRedirect(r *mesh.Redirect, prefix string, extra map[string]*structpb.Value) error {
	fields := map[string]*structpb.Value{}
	if _, err := encodeRedirect(r, prefix, map[string]*structpb.Value{}); err != nil {
		return below("Filters.Redirect", err)
	}
	text := func(key, value string) {
		if value != "" {
			fields[key] = structpb.NewStringValue(value)
		}
	}
	text("scheme", r.Scheme)
	text("hostname", r.Hostname)
	if r.Port != 0 {
		fields["port"] = structpb.NewNumberValue(float64(r.Port))
	}
	fields["status"] = structpb.NewNumberValue(float64(r.Status))
	if r.Path != nil {
		key := keyReplaceFull
		if r.Path.Kind == mesh.PathReplacePrefix {
			key = keyReplacePrefix
		}
		fields[key] = structpb.NewStringValue(r.Path.Value)
	}
	extra[keyRedirect] = structpb.NewStructValue(&structpb.Struct{Fields: fields})
	return nil
}

func decodeBackendRedirect(extra map[string]*structpb.Value) *mesh.Redirect {
	if extra[keyRedirect] == nil {
		return nil
	}
	fields := extra[keyRedirect].GetStructValue().GetFields()
	r := &mesh.Redirect{
		Scheme: fields["scheme"].GetStringValue(), Hostname: fields["hostname"].GetStringValue(),
		Port: uint16(fields["port"].GetNumberValue()), Status: int(fields["status"].GetNumberValue()),
	}
	if v := fields[keyReplaceFull]; v != nil {
		r.Path = &mesh.PathEdit{Kind: mesh.PathReplaceFull, Value: v.GetStringValue()}
	} else if v := fields[keyReplacePrefix]; v != nil {
		r.Path = &mesh.PathEdit{Kind: mesh.PathReplacePrefix, Value: v.GetStringValue()}
	}
	return r
}
