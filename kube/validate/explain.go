package validate

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// explain puts what an API server would say into problems.
func explain(errs field.ErrorList) []Problem {
	var problems []Problem
	for _, err := range errs {
		// That none of several schemas fits says less than what each of them wants.
		if strings.Contains(err.Detail, "must validate one and only one schema") || strings.Contains(err.Detail, "must validate at least one schema") {
			continue
		}
		problems = append(problems, explainOne(err))
	}
	if len(problems) == 0 && len(errs) > 0 {
		problems = append(problems, explainOne(errs[0]))
	}
	slices.SortFunc(problems, func(a, b Problem) int {
		return cmp.Or(strings.Compare(a.Field, b.Field), strings.Compare(a.Text, b.Text))
	})
	return slices.Compact(problems)
}

func explainOne(err *field.Error) Problem {
	p := Problem{Field: strings.TrimPrefix(err.Field, "."), Text: afterBody(err.Detail)}
	if p.Field == "<nil>" || p.Field == "[]" {
		p.Field = ""
	}
	// A rule that needs a field that is not there says so in front of its message.
	if _, message, ok := strings.Cut(p.Text, " evaluating rule: "); ok && err.Type == field.ErrorTypeInvalid {
		p.Text = message
	}
	number, counted := err.BadValue.(int64)
	if n, ok := err.BadValue.(int); ok {
		// A rule that needs a field that is not there says so in front of its message.
		if _, message, ok := strings.Cut(p.Text, " evaluating rule: "); ok && err.Type == field.ErrorTypeInvalid {
			p.Text = message
		}
		number, counted = int64(n), true
	}
	switch {
	case err.Type == field.ErrorTypeRequired:
		p.Text, p.Cure = "is missing", missing[p.Field]
	case err.Type == field.ErrorTypeNotSupported:
		p.Text = shown(err.BadValue) + " is not known"
		p.Cure = "one of " + strings.ReplaceAll(strings.TrimPrefix(err.Detail, "supported values: "), `"`, "")
	case err.Type == field.ErrorTypeDuplicate:
		p.Text, p.Cure = "is there twice", "remove one of the two"
		if keys, ok := err.BadValue.(map[string]any); ok {
			p.Text = "the key " + keyText(keys) + " is there twice"
		}
	case err.Type == field.ErrorTypeTooMany && counted:
		p.Text = fmt.Sprintf("has %d items, and %s", number, strings.TrimPrefix(err.Detail, "must "))
	case err.Type == field.ErrorTypeTooMany, err.Type == field.ErrorTypeTooLong:
	case strings.HasPrefix(p.Text, "must be of type ipv"):
		p.Text = shown(err.BadValue) + " is not an IP address"
	case err.Type == field.ErrorTypeTypeInvalid:
	case strings.HasPrefix(p.Text, "should have at least") && counted && number == 0:
		p.Text = "is empty"
	case shouldMatch.MatchString(p.Text):
		pattern := shouldMatch.FindStringSubmatch(p.Text)[1]
		p.Text = shown(err.BadValue) + " does not match " + pattern
		if known, ok := patterns[pattern]; ok {
			p.Text, p.Cure = shown(err.BadValue)+" is not "+known.what, known.cure
		}
	case strings.HasPrefix(p.Text, "should be ") && isScalar(err.BadValue):
		p.Text = shown(err.BadValue) + " " + p.Text
	default:
		p.Cure = cures[p.Text]
	}
	return p
}

// keyText writes the keys of a list's item: name "a".
func keyText(keys map[string]any) string {
	var words []string
	for _, name := range slices.Sorted(maps.Keys(keys)) {
		words = append(words, name+" "+shown(keys[name]))
	}
	return strings.Join(words, ", ")
}

// missing says what to put into fields that are not there.
var missing = map[string]string{
	"spec.controllerName": "for Sluice it is sluice.dev/gateway-controller",
}

// afterBody takes "spec.x in body " from a message of the schema.
func afterBody(text string) string {
	if _, rest, ok := strings.Cut(text, " in body "); ok {
		return rest
	}
	return text
}

var shouldMatch = regexp.MustCompile(`^should match '(.*)'$`)

func isScalar(v any) bool {
	switch v.(type) {
	case string, int64, float64, int, bool:
		return true
	}
	return false
}

func shown(v any) string {
	if s, ok := v.(string); ok {
		return fmt.Sprintf("%q", s)
	}
	if !isScalar(v) {
		return "it"
	}
	return fmt.Sprint(v)
}

// patterns say in words what the patterns of the schemas stand for.
var patterns = map[string]struct{ what, cure string }{
	`^[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?$`:                                                    {"a kind", "such as Service"},
	`^$|^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`:                     {"an API group", `such as gateway.networking.k8s.io, or "" for the core group`},
	`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`:                                                          {"a namespace", "lower case letters, digits and -"},
	`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`:                        {"a name", "lower case letters, digits, - and ., without wildcard and port"},
	"^[A-Za-z0-9!#$%&'*+\\-.^_\\x60|~]+$":                                                      {"a name of a header or parameter", "RFC 9110 §5.6.2"},
	`^(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`:                 {"a hostname", `lower case, without port, "*." only in front`},
	`^([0-9]{1,5}(h|m|s|ms)){1,4}$`:                                                            {"a duration", `such as "1m30s" or "500ms"`},
	`(^\*$)|(^(http(s)?):\/\/(((\*\.)?([a-zA-Z0-9\-]+\.)*[a-zA-Z0-9-]+|\*)(:([0-9]{1,5}))?)$)`: {"an origin", `such as https://shop.example:8443, https://*.example or "*"`},
	`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\/[A-Za-z0-9\/\-._~%!$&'()*+,;=:]+$`: {
		"the name of a controller", "a domain and a path; that of Sluice is sluice.dev/gateway-controller",
	},
	`^(([^:/?#]+):)(//([^/?#]*))([^?#]*)(\?([^#]*))?(#(.*))?`:                                                         {"a URI", "such as spiffe://cluster.local/ns/shop/sa/web"},
	`^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$`:                                                                   {"a label's value", "letters, digits, -, _ and ."},
	`^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$`:                                                                        {"a reason", ""},
	`^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$`: {"a type of condition", ""},
}

// cures go with messages of rules.
var cures = map[string]string{
	"Must have port for Service reference": "add port; a Service as a backend needs one",
	"sectionName must be specified when parentRefs includes 2 or more references to the same parent":                                     "tell them apart by sectionName or port",
	"sectionName must be unique when parentRefs includes 2 or more references to the same parent":                                        "tell them apart by sectionName or port",
	"RequestRedirect filter must not be used together with backendRefs":                                                                  "a redirect answers by itself; remove one of the two",
	"May specify either httpRouteFilterRequestRedirect or httpRouteFilterRequestRewrite, but not both":                                   "a redirect can change the URL by itself",
	"tls must not be specified for protocols ['HTTP', 'TCP', 'UDP']":                                                                     "use HTTPS or TLS, or remove tls",
	"backendRequest timeout cannot be longer than request timeout":                                                                       "each try is a part of the request",
	"One or both of 'service' or 'method' must be specified":                                                                             "remove method to match all calls",
	"When using URLRewrite filter with path.replacePrefixMatch, exactly one PathPrefix match must be specified":                          "split the rule",
	"When using RequestRedirect filter with path.replacePrefixMatch, exactly one PathPrefix match must be specified":                     "split the rule",
	"Within backendRefs, When using URLRewrite filter with path.replacePrefixMatch, exactly one PathPrefix match must be specified":      "split the rule",
	"Within backendRefs, when using RequestRedirect filter with path.replacePrefixMatch, exactly one PathPrefix match must be specified": "split the rule",
}
