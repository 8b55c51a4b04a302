// Package validate checks objects of the Gateway API, and of Sluice's own kinds, as an
// API server with the definitions of the standard channel would: fields that the schema does not have,
// defaults, types, patterns, limits, keys of lists, and the rules in CEL.
//
// Two things that an API server does are left out, because a file has no version
// before: rules about the change of a field (GatewayClass.spec.controllerName is
// immutable) and the leniency towards fields that did not change.
//
// Nothing here does I/O. A kind's schema is read when its first object comes, and a
// rule compiled when the first object has the field that it is about; all functions
// may be called by any goroutine.
package validate

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structural "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	schemacel "k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	celconfig "k8s.io/apiserver/pkg/apis/cel"

	"github.com/sluice-mesh/sluice/kube/validate/crds"
)

// Problem is what is wrong with a field.
type Problem struct {
	Field string // such as "spec.rules[0].matches[1].path.value"
	Text  string // what is wrong with it
	Cure  string // what to do about it, or empty
}

// Has reports whether there is a schema for a kind.
func Has(kind string) bool { return kinds[kind] != nil }

// Object checks the content of an object of a kind that Has knows, as JSON decodes
// it but with whole numbers as int64, and fills in the defaults of the schema. Its
// status is not looked at. If there are problems the content is of no use.
func Object(kind string, content map[string]any) []Problem {
	k := kinds[kind]()
	status, has := content["status"]
	delete(content, "status")
	defer func() {
		delete(content, "status") // it has defaults too
		if has {
			content["status"] = status
		}
	}()
	var problems []Problem
	unknown := pruning.PruneWithOptions(content, k.schema, true, structural.UnknownFieldPathOptions{TrackUnknownFieldPaths: true})
	for _, path := range unknown {
		if k.bundle == "" {
			problems = append(problems, Problem{Field: path, Text: "is not a field of the kind", Cure: "remove it"})
			continue
		}
		problems = append(problems, Problem{
			Field: path, Text: "is not a field of the Gateway API's standard channel, " + k.bundle,
			Cure: "remove it; experimental fields are not served",
		})
	}
	defaulting.Default(content, k.schema)
	defaulting.PruneNonNullableNullsWithoutDefaults(content, k.schema)
	delete(content, "status")
	errs := validation.ValidateCustomResource(nil, content, k.validator)
	errs = append(errs, listtype.ValidateListSetsAndMaps(nil, k.schema, content)...)
	if !slices.ContainsFunc(errs, blocking) {
		budget := int64(celconfig.RuntimeCELCostBudget)
		errs = append(errs, k.rules.check(nil, content, &budget)...)
	}
	return append(problems, explain(errs)...)
}

// blocking reports whether rules cannot be tried on an object with that error, as an
// API server decides it.
func blocking(err *field.Error) bool {
	switch err.Type {
	case field.ErrorTypeNotSupported, field.ErrorTypeRequired, field.ErrorTypeTooLong, field.ErrorTypeTooMany, field.ErrorTypeTypeInvalid:
		return true
	}
	return false
}

// kinds has the schemas by kind, read when they are first asked for.
var kinds = func() map[string]func() *kind {
	out := map[string]func() *kind{}
	for _, name := range append(crds.Kinds(), ownKinds...) {
		out[name] = sync.OnceValue(func() *kind {
			k, err := read(name)
			if err != nil {
				panic(fmt.Sprintf("validate: schema of %s: %v", name, err)) // it is embedded and tested
			}
			return k
		})
	}
	return out
}()

type kind struct {
	bundle    string
	schema    *structural.Structural
	validator validation.SchemaValidator
	rules     *node
}

func read(name string) (*kind, error) {
	d, ok := crds.Get(name)
	if !ok {
		var err error
		if d, err = own(name); err != nil {
			return nil, err
		}
	}
	var v1 apiextensionsv1.JSONSchemaProps
	if err := json.Unmarshal(d.Schema, &v1); err != nil {
		return nil, err
	}
	var internal apiextensions.JSONSchemaProps
	if err := apiextensionsv1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(&v1, &internal, nil); err != nil {
		return nil, err
	}
	schema, err := structural.NewStructural(&internal)
	if err != nil {
		return nil, err
	}
	validator, _, err := validation.NewSchemaValidator(&internal)
	if err != nil {
		return nil, err
	}
	return &kind{bundle: d.Bundle, schema: schema, validator: validator, rules: newNode(schema, true)}, nil
}

// node is a place of a schema with rules there or below. To compile the rules of a
// whole HTTPRoute takes a tenth of a second; those of the fields that objects use,
// much less.
type node struct {
	rules      func() *schemacel.Validator // nil: none here
	properties map[string]*node
	values     *node // of a map
	items      *node
}

// newNode returns nil if there are no rules at or below a place.
func newNode(s *structural.Structural, root bool) *node {
	if s == nil {
		return nil
	}
	n := &node{items: newNode(s.Items, false)}
	for name := range s.Properties {
		p := s.Properties[name]
		if child := newNode(&p, false); child != nil {
			if n.properties == nil {
				n.properties = map[string]*node{}
			}
			n.properties[name] = child
		}
	}
	if s.AdditionalProperties != nil {
		n.values = newNode(s.AdditionalProperties.Structural, false)
	}
	if len(s.XValidations) > 0 {
		n.rules = sync.OnceValue(func() *schemacel.Validator {
			return schemacel.NewValidator(withoutRules(s, true), root, celconfig.PerCallLimit)
		})
	}
	if n.rules == nil && n.items == nil && n.values == nil && n.properties == nil {
		return nil
	}
	return n
}

// withoutRules copies a schema and leaves the rules out of all but its top.
func withoutRules(s *structural.Structural, top bool) *structural.Structural {
	if s == nil {
		return nil
	}
	c := *s
	if !top {
		c.XValidations = nil
	}
	c.Items = withoutRules(s.Items, false)
	if s.Properties != nil {
		c.Properties = make(map[string]structural.Structural, len(s.Properties))
		for name := range s.Properties {
			p := s.Properties[name]
			c.Properties[name] = *withoutRules(&p, false)
		}
	}
	if s.AdditionalProperties != nil {
		a := *s.AdditionalProperties
		a.Structural = withoutRules(a.Structural, false)
		c.AdditionalProperties = &a
	}
	return &c
}

// check applies the rules to a value and all in it. budget is what is left of the
// cost that an API server allows for an object.
func (n *node) check(path *field.Path, value any, budget *int64) field.ErrorList {
	if n == nil || value == nil {
		return nil
	}
	var errs field.ErrorList
	if n.rules != nil {
		var found field.ErrorList
		found, *budget = n.rules().Validate(context.Background(), path, nil, value, nil, *budget)
		errs = append(errs, found...)
		if *budget < 0 {
			return errs
		}
	}
	switch v := value.(type) {
	case map[string]any:
		for name, e := range v {
			if child := n.properties[name]; child != nil {
				errs = append(errs, child.check(childOf(path, name), e, budget)...)
			} else if n.values != nil {
				errs = append(errs, n.values.check(path.Key(name), e, budget)...)
			}
		}
	case []any:
		for i, e := range v {
			errs = append(errs, n.items.check(path.Index(i), e, budget)...)
		}
	}
	return errs
}

func childOf(path *field.Path, name string) *field.Path {
	if path == nil {
		return field.NewPath(name)
	}
	return path.Child(name)
}
