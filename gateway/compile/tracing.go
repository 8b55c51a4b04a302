package compile

import (
	"fmt"

	"github.com/sluice-mesh/sluice/kube"
	"github.com/sluice-mesh/sluice/mesh"
)

// Tracing returns how the requests of a route are traced, nil where the node's default
// holds. The error names the annotation and what it takes; the default holds then.
func Tracing(o kube.Object) (*mesh.Tracing, error) {
	text, ok := o.GetAnnotations()[mesh.AnnotationTraceSampling]
	if !ok {
		return nil, nil
	}
	share, err := mesh.ParsePercentage(text)
	if err != nil {
		return nil, fmt.Errorf("metadata.annotations[%s]: %q: %w", mesh.AnnotationTraceSampling, text, err)
	}
	return &mesh.Tracing{Sampling: share}, nil
}
