package codec

import (
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/sluice-mesh/sluice/mesh"
)

// The kinds of filter by name, in the order that Envoy's fields tell.
const (
	filterRequest  = "request-headers"
	filterResponse = "response-headers"
	filterRedirect = "redirect"
	filterRewrite  = "rewrite"
	filterMirror   = "mirror"
	filterCORS     = "cors"
)

// filterSet is a list of filters by kind. The Gateway API allows each kind but
// mirrors once in a list.
type filterSet struct {
	request  *mesh.HeaderEdit
	response *mesh.HeaderEdit
	redirect *mesh.Redirect
	rewrite  *mesh.Rewrite
	mirrors  []*mesh.Mirror
	cors     *mesh.CORS
	order    []string // of the list; unset while decoding
}

func splitFilters(filters []mesh.Filter) (*filterSet, error) {
	s := new(filterSet)
	for i := range filters {
		f := &filters[i]
		n := len(s.order)
		if f.RequestHeaders != nil {
			s.request = f.RequestHeaders
			s.order = append(s.order, filterRequest)
		}
		if f.ResponseHeaders != nil {
			s.response = f.ResponseHeaders
			s.order = append(s.order, filterResponse)
		}
		if f.Redirect != nil {
			s.redirect = f.Redirect
			s.order = append(s.order, filterRedirect)
		}
		if f.Rewrite != nil {
			s.rewrite = f.Rewrite
			s.order = append(s.order, filterRewrite)
		}
		if f.Mirror != nil {
			s.mirrors = append(s.mirrors, f.Mirror)
			s.order = append(s.order, filterMirror)
		}
		if f.CORS != nil {
			s.cors = f.CORS
			s.order = append(s.order, filterCORS)
		}
		if len(s.order) != n+1 {
			return nil, at(fmt.Sprintf("[%d]", i), "%d kinds set, want one", len(s.order)-n)
		}
		if s.order[n] != filterMirror && slices.Contains(s.order[:n], s.order[n]) {
			return nil, at(fmt.Sprintf("[%d]", i), "a second %s", s.order[n])
		}
	}
	return s, nil
}

// dropForwarding forgets what concerns requests that are forwarded only.
func (s *filterSet) dropForwarding() {
	s.rewrite, s.mirrors = nil, nil
	s.order = slices.DeleteFunc(s.order, func(k string) bool { return k == filterRewrite || k == filterMirror })
}

// told returns the order that Envoy's fields tell: an edit of nothing leaves none.
func (s *filterSet) told() []string {
	var order []string
	if s.request != nil && !emptyEdit(s.request) {
		order = append(order, filterRequest)
	}
	if s.response != nil && !emptyEdit(s.response) {
		order = append(order, filterResponse)
	}
	if s.redirect != nil {
		order = append(order, filterRedirect)
	}
	if s.rewrite != nil && *s.rewrite != (mesh.Rewrite{}) {
		order = append(order, filterRewrite)
	}
	for range s.mirrors {
		order = append(order, filterMirror)
	}
	if s.cors != nil {
		order = append(order, filterCORS)
	}
	return order
}

func (s *filterSet) canonical() bool { return slices.Equal(s.order, s.told()) }

// join returns the list, in the order that the metadata or Envoy's fields tell.
func (s *filterSet) join(fields map[string]*structpb.Value) ([]mesh.Filter, error) {
	order := s.told()
	if v, ok := fields[keyFilters]; ok {
		order = texts(v)
	}
	var out []mesh.Filter
	mirrors := s.mirrors
	for _, kind := range order {
		var f mesh.Filter
		switch kind {
		case filterRequest:
			f.RequestHeaders = orNew(s.request)
		case filterResponse:
			f.ResponseHeaders = orNew(s.response)
		case filterRedirect:
			f.Redirect = s.redirect
		case filterRewrite:
			f.Rewrite = orNew(s.rewrite)
		case filterMirror:
			if len(mirrors) == 0 {
				return nil, at("metadata", "more mirrors in the order of filters than there are")
			}
			f.Mirror, mirrors = mirrors[0], mirrors[1:]
		case filterCORS:
			f.CORS = orNew(s.cors)
		default:
			return nil, at("metadata", "filter %q is not known", kind)
		}
		out = append(out, f)
	}
	return out, nil
}

func orNew[T any](p *T) *T {
	if p == nil {
		return new(T)
	}
	return p
}

func emptyEdit(e *mesh.HeaderEdit) bool {
	return len(e.Set) == 0 && len(e.Add) == 0 && len(e.Remove) == 0
}

// encodeEdit returns Envoy's two lists. Envoy removes before it adds, too.
func encodeEdit(e *mesh.HeaderEdit) ([]*corev3.HeaderValueOption, []string) {
	if e == nil {
		return nil, nil
	}
	var add []*corev3.HeaderValueOption
	for _, v := range e.Set {
		add = append(add, headerOption(v, corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD))
	}
	for _, v := range e.Add {
		add = append(add, headerOption(v, corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD))
	}
	return add, e.Remove
}

// headerOption writes a header field. Envoy takes the value for a format, in
// which % is doubled, and leaves out an empty one unless told to keep it.
func headerOption(v mesh.HeaderValue, action corev3.HeaderValueOption_HeaderAppendAction) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:         &corev3.HeaderValue{Key: v.Name, Value: strings.ReplaceAll(v.Value, "%", "%%")},
		AppendAction:   action,
		KeepEmptyValue: v.Value == "",
	}
}

func decodeEdit(add []*corev3.HeaderValueOption, remove []string) *mesh.HeaderEdit {
	if len(add) == 0 && len(remove) == 0 {
		return nil
	}
	e := &mesh.HeaderEdit{Remove: slices.Clone(remove)}
	for _, o := range add {
		v := mesh.HeaderValue{Name: o.GetHeader().GetKey(), Value: strings.ReplaceAll(o.GetHeader().GetValue(), "%%", "%")}
		if o.GetAppendAction() == corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD {
			e.Set = append(e.Set, v)
		} else {
			e.Add = append(e.Add, v)
		}
	}
	return e
}

var redirectCodes = map[int]routev3.RedirectAction_RedirectResponseCode{
	http.StatusMovedPermanently:  routev3.RedirectAction_MOVED_PERMANENTLY,
	http.StatusFound:             routev3.RedirectAction_FOUND,
	http.StatusSeeOther:          routev3.RedirectAction_SEE_OTHER,
	http.StatusTemporaryRedirect: routev3.RedirectAction_TEMPORARY_REDIRECT,
	http.StatusPermanentRedirect: routev3.RedirectAction_PERMANENT_REDIRECT,
}

func encodeRedirect(r *mesh.Redirect, prefix string, fields map[string]*structpb.Value) (*routev3.RedirectAction, error) {
	code, ok := redirectCodes[r.Status]
	if !ok {
		return nil, at("Status", "%d is not a redirect that the Gateway API knows", r.Status)
	}
	m := &routev3.RedirectAction{HostRedirect: r.Hostname, PortRedirect: uint32(r.Port), ResponseCode: code}
	if r.Scheme != "" {
		m.SchemeRewriteSpecifier = &routev3.RedirectAction_SchemeRedirect{SchemeRedirect: r.Scheme}
	}
	if r.Path == nil {
		return m, nil
	}
	switch r.Path.Kind {
	case mesh.PathReplaceFull:
		m.PathRewriteSpecifier = &routev3.RedirectAction_PathRedirect{PathRedirect: r.Path.Value}
	case mesh.PathReplacePrefix:
		text, expression := encodePrefix(prefix, r.Path.Value, fields)
		if expression != nil {
			m.PathRewriteSpecifier = &routev3.RedirectAction_RegexRewrite{RegexRewrite: expression}
		} else {
			m.PathRewriteSpecifier = &routev3.RedirectAction_PrefixRewrite{PrefixRewrite: text}
		}
	default:
		return nil, at("Path.Kind", "%d is not known", r.Path.Kind)
	}
	return m, nil
}

func decodeRedirect(m *routev3.RedirectAction, fields map[string]*structpb.Value) *mesh.Redirect {
	r := &mesh.Redirect{
		Scheme:   m.GetSchemeRedirect(),
		Hostname: m.GetHostRedirect(),
		Port:     uint16(m.GetPortRedirect()), // a greater one is found by unread
	}
	for status, code := range redirectCodes {
		if code == m.GetResponseCode() {
			r.Status = status
		}
	}
	if v := fields[keyReplacePrefix]; v != nil {
		r.Path = &mesh.PathEdit{Kind: mesh.PathReplacePrefix, Value: v.GetStringValue()}
		return r
	}
	switch p := m.GetPathRewriteSpecifier().(type) {
	case *routev3.RedirectAction_PathRedirect:
		r.Path = &mesh.PathEdit{Kind: mesh.PathReplaceFull, Value: p.PathRedirect}
	case *routev3.RedirectAction_PrefixRewrite:
		r.Path = &mesh.PathEdit{Kind: mesh.PathReplacePrefix, Value: p.PrefixRewrite}
	}
	return r
}

// encodePrefix says in Envoy's words that the path elements of prefix become
// value. The Gateway API replaces elements and Envoy bytes, so that "/" in place
// of "/a" must not make "//b" of "/a/b", nor "/x" in place of "/" make "/xb" of
// "/b". When Envoy's text differs from value, value goes into fields.
func encodePrefix(prefix, value string, fields map[string]*structpb.Value) (string, *matcherv3.RegexMatchAndSubstitute) {
	text := strings.TrimSuffix(value, "/")
	if prefix == "/" {
		text += "/"
	}
	if text != value || text == "" {
		fields[keyReplacePrefix] = structpb.NewStringValue(value)
	}
	if text == "" {
		return "", replaceExpression("^"+regexp.QuoteMeta(prefix)+"/*", "/")
	}
	return text, nil
}

// replaceExpression writes a replacement of what an expression matches. Envoy
// reads \1 in the substitution, so a backslash is doubled.
func replaceExpression(expr, value string) *matcherv3.RegexMatchAndSubstitute {
	return &matcherv3.RegexMatchAndSubstitute{
		Pattern:      &matcherv3.RegexMatcher{Regex: expr},
		Substitution: strings.ReplaceAll(value, `\`, `\\`),
	}
}

// readExpression returns the value of a replacement of the whole path.
func readExpression(m *matcherv3.RegexMatchAndSubstitute) (string, error) {
	if got := m.GetPattern().GetRegex(); got != wholePath {
		return "", at("pattern", "%q: %w", got, errUnsupported)
	}
	return strings.ReplaceAll(m.GetSubstitution(), `\\`, `\`), nil
}
