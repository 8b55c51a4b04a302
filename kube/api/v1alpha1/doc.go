// Package v1alpha1 has the kinds of the API group sluice.dev, version v1alpha1: what
// the Gateway API and Kubernetes have no word for.
//
// Everything here is values. The definitions that an API server wants, with their
// schemas and rules, are made from the types; package validate applies them to files.
//
// +kubebuilder:object:generate=true
// +groupName=sluice.dev
// +versionName=v1alpha1
package v1alpha1

import (
	"embed"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

//go:generate go tool -modfile=../../../tools/go.mod controller-gen object:headerFile=/dev/null crd:crdVersions=v1 paths=. output:crd:dir=.
//go:generate go run ../gendocs -crd sluice.dev_backendtrafficpolicies.yaml -tests fields.yaml -o ../../../docs/reference/backend-traffic-policy.md

// GroupVersion is the group and version of all kinds here.
var GroupVersion = schema.GroupVersion{Group: "sluice.dev", Version: "v1alpha1"}

// Definitions are the CustomResourceDefinitions, a YAML file for each kind.
//
//go:embed *_*.yaml
var Definitions embed.FS
