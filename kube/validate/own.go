package validate

import (
	"encoding/json"
	"fmt"
	"strings"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/yaml"

	"github.com/sluice-mesh/sluice/kube/api/v1alpha1"
	"github.com/sluice-mesh/sluice/kube/validate/crds"
)

// ownKinds are the kinds of sluice.dev.
var ownKinds = []string{"BackendTrafficPolicy"}

// own reads the definition of a kind of sluice.dev.
func own(kind string) (crds.Definition, error) {
	entries, err := v1alpha1.Definitions.ReadDir(".")
	if err != nil {
		return crds.Definition{}, err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), v1alpha1.GroupVersion.Group) {
			continue
		}
		text, err := v1alpha1.Definitions.ReadFile(e.Name())
		if err != nil {
			return crds.Definition{}, err
		}
		var crd apiextensionsv1.CustomResourceDefinition
		if err := yaml.UnmarshalStrict(text, &crd); err != nil {
			return crds.Definition{}, fmt.Errorf("%s: %w", e.Name(), err)
		}
		if crd.Spec.Names.Kind != kind {
			continue
		}
		schema, err := json.Marshal(crd.Spec.Versions[0].Schema.OpenAPIV3Schema)
		return crds.Definition{
			Group: crd.Spec.Group, Kind: kind, Plural: crd.Spec.Names.Plural, Namespaced: true,
			Versions: []string{crd.Spec.Versions[0].Name}, Schema: schema,
		}, err
	}
	return crds.Definition{}, fmt.Errorf("no definition of %s", kind)
}
