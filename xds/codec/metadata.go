package codec

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"
)

// MetadataKey is the key of filter_metadata under which a message carries what
// Envoy has no field for.
const MetadataKey = "sluice.dev"

// metadata returns the fields as metadata, nil when there are none.
func metadata(fields map[string]*structpb.Value) *corev3.Metadata {
	if len(fields) == 0 {
		return nil
	}
	return &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{MetadataKey: {Fields: fields}}}
}

// metadataFields returns the fields of metadata, nil when there are none. Fields
// that nobody reads are found by unread.
func metadataFields(m *corev3.Metadata) map[string]*structpb.Value {
	return m.GetFilterMetadata()[MetadataKey].GetFields()
}

func textList(texts []string) *structpb.Value {
	l := &structpb.ListValue{Values: make([]*structpb.Value, len(texts))}
	for i, t := range texts {
		l.Values[i] = structpb.NewStringValue(t)
	}
	return structpb.NewListValue(l)
}

// texts returns the strings of a list value; other values become "".
func texts(v *structpb.Value) []string {
	list := v.GetListValue().GetValues()
	if len(list) == 0 {
		return nil
	}
	out := make([]string, len(list))
	for i, e := range list {
		out[i] = e.GetStringValue()
	}
	return out
}
