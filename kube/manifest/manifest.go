// Package manifest reads files of Kubernetes objects as an API server would:
// strictly, with defaults filled in and with rules checked.
//
// It is pure: bytes in, objects and problems out. Nothing of a file fails but
// what is wrong.
package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/sluice-mesh/sluice/kube"
	"github.com/sluice-mesh/sluice/kube/api/v1alpha1"
	"github.com/sluice-mesh/sluice/kube/validate"
)

// File is what was read.
type File struct {
	// Objects in the order of the file. None is there twice.
	Objects  []Object
	Problems []kube.Problem
	// Broken are objects that are in the file and wrong. If BrokenUnknown, there are
	// documents of which not even that could be read.
	Broken        []kube.Key
	BrokenUnknown bool
}

// Object is a good object with its place.
type Object struct {
	kube.Object
	Document int // counts from 1
	Line     int
}

// Parse reads the documents of a file: YAML with "---" between them, or JSON
// values one after the other. path is for the problems only.
func Parse(path string, data []byte) File {
	p := parser{path: path, seen: map[kube.Key]int{}, unknown: map[string]bool{}}
	for i, d := range split(data) {
		p.document = d
		p.document.number = i + 1
		p.parse(d.text)
	}
	return p.file
}

type document struct {
	number int
	line   int // of the first line, from 1
	text   []byte
}

type parser struct {
	path     string
	file     File
	document document
	seen     map[kube.Key]int // document that has it
	unknown  map[string]bool  // kinds already warned of
}

// split cuts a file into its non-empty documents.
func split(data []byte) []document {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	if trimmed := bytes.TrimLeft(data, " \t\r\n"); len(trimmed) > 0 && trimmed[0] == '{' {
		if docs, err := splitJSON(data); err == nil {
			return docs
		}
	}
	var docs []document
	start, first, line := 0, 1, 1
	flush := func(end int) {
		if !blank(data[start:end]) {
			docs = append(docs, document{line: first, text: data[start:end]})
		}
	}
	for pos := 0; pos < len(data); line++ {
		end := len(data)
		if i := bytes.IndexByte(data[pos:], '\n'); i >= 0 {
			end = pos + i + 1
		}
		if l := data[pos:end]; isSeparator(l) {
			flush(pos)
			start, first = end, line+1
			// Content may follow the marker on its line.
			if rest := bytes.TrimSpace(l[3:]); len(rest) > 0 && rest[0] != '#' {
				start, first = pos+3, line
			}
		}
		pos = end
	}
	flush(len(data))
	return docs
}

func isSeparator(line []byte) bool {
	return bytes.HasPrefix(line, []byte("---")) && (len(line) == 3 || strings.IndexByte(" \t\r\n", line[3]) >= 0)
}

// blank reports whether a document has nothing but comments, white space and
// directives.
func blank(text []byte) bool {
	for line := range bytes.Lines(text) {
		line = bytes.TrimSpace(line)
		if len(line) > 0 && line[0] != '#' && line[0] != '%' && !bytes.Equal(line, []byte("...")) {
			return false
		}
	}
	return true
}

func splitJSON(data []byte) ([]document, error) {
	var docs []document
	d := json.NewDecoder(bytes.NewReader(data))
	for {
		var raw json.RawMessage
		err := d.Decode(&raw)
		if errors.Is(err, io.EOF) {
			return docs, nil
		}
		if err != nil {
			return nil, err
		}
		end := int(d.InputOffset())
		docs = append(docs, document{line: 1 + bytes.Count(data[:end-len(raw)], []byte("\n")), text: raw})
	}
}

func (p *parser) problem(key kube.Key, field, text, cure string) {
	p.file.Problems = append(p.file.Problems, kube.Problem{
		File: p.path, Document: p.document.number, Line: p.document.line, Object: key, Field: field, Text: text, Cure: cure,
	})
}

func (p *parser) warn(key kube.Key, field, text, cure string) {
	p.problem(key, field, text, cure)
	p.file.Problems[len(p.file.Problems)-1].Warning = true
}

var yamlLine = regexp.MustCompile(`\bline (\d+)\b`)

// parse reads one document.
func (p *parser) parse(text []byte) {
	raw, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		message := strings.TrimPrefix(strings.TrimPrefix(err.Error(), "error converting YAML to JSON: "), "yaml: ")
		message = strings.Join(strings.Fields(strings.ReplaceAll(message, "unmarshal errors:", "")), " ")
		message = yamlLine.ReplaceAllStringFunc(message, func(s string) string {
			n, _ := strconv.Atoi(strings.TrimPrefix(s, "line "))
			return "line " + strconv.Itoa(n+p.document.line-1)
		})
		cure := ""
		if strings.Contains(message, "cannot start any token") {
			cure = "indent with spaces, not tabs"
		}
		p.file.BrokenUnknown = true
		p.problem(kube.Key{}, "", message, cure)
		return
	}
	p.object(raw, "")
}

// header is what tells what an object is.
type header struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Metadata   headerMeta        `json:"metadata"`
	Items      []json.RawMessage `json:"items"`
}

type headerMeta struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

// object reads one object; prefix is its place in a list.
func (p *parser) object(raw []byte, prefix string) {
	if bytes.Equal(bytes.TrimSpace(raw), []byte("null")) {
		return
	}
	var h header
	if err := json.Unmarshal(raw, &h); err != nil || h.Kind == "" || h.APIVersion == "" {
		p.file.BrokenUnknown = true
		const cure = "each document needs apiVersion, kind and metadata.name"
		var typ *json.UnmarshalTypeError
		switch {
		case errors.As(err, &typ):
			p.problem(kube.Key{}, prefix+typ.Field, fmt.Sprintf("is %s, and should be %s", found(typ.Value), wanted(typ.Type)), cure)
		case err != nil:
			p.problem(kube.Key{}, strings.TrimSuffix(prefix, "."), "not a Kubernetes object: "+plain(err), cure)
		case h.Kind == "":
			p.problem(kube.Key{}, prefix+"kind", "is missing", cure)
		default:
			p.problem(kube.Key{}, prefix+"apiVersion", "is missing", cure)
		}
		return
	}
	if h.Items != nil && strings.HasSuffix(h.Kind, "List") {
		for i, item := range h.Items {
			// Items of "HTTPRouteList" may leave out what the list says.
			p.object(withType(item, h), fmt.Sprintf("%sitems[%d].", prefix, i))
		}
		return
	}
	key := kube.Key{Kind: kube.Kind(h.Kind), Namespace: h.Metadata.Namespace, Name: h.Metadata.Name}
	o, ok := newObject(h.APIVersion, h.Kind)
	if !ok {
		p.notOurs(key, h, prefix)
		return
	}
	if key.Kind.Namespaced() && key.Namespace == "" {
		key.Namespace = "default"
	}
	if !key.Kind.Namespaced() {
		key.Namespace = ""
	}
	before := p.errors()
	p.decode(key, raw, o, prefix)
	if p.errors() == before && validate.Has(h.Kind) {
		o = p.validate(key, raw, o, prefix)
	}
	if p.errors() == before {
		o.SetNamespace(key.Namespace)
		setDefaults(o)
		check(o, func(field, text, cure string) { p.problem(key, prefix+field, text, cure) })
		checkWarnings(o, func(field, text, cure string) { p.warn(key, prefix+field, text, cure) })
	}
	if first, twice := p.seen[key]; twice && key.Name != "" {
		p.problem(key, "", fmt.Sprintf("is also in document %d of this file", first), "remove one of the two")
		return
	}
	if key.Name != "" {
		p.seen[key] = p.document.number
	}
	switch {
	case p.errors() == before:
		p.file.Objects = append(p.file.Objects, Object{Object: o, Document: p.document.number, Line: p.document.line})
	case key.Name == "":
		p.file.BrokenUnknown = true
	default:
		p.file.Broken = append(p.file.Broken, key)
	}
}

func (p *parser) errors() int {
	n := 0
	for i := range p.file.Problems {
		if !p.file.Problems[i].Warning {
			n++
		}
	}
	return n
}

func withType(item []byte, list header) []byte {
	var fields map[string]json.RawMessage
	if json.Unmarshal(item, &fields) != nil || fields == nil || list.Kind == "List" {
		return item
	}
	set := func(name, value string) {
		if _, ok := fields[name]; !ok {
			fields[name], _ = json.Marshal(value)
		}
	}
	set("apiVersion", list.APIVersion)
	set("kind", strings.TrimSuffix(list.Kind, "List"))
	out, err := json.Marshal(fields)
	if err != nil {
		return item
	}
	return out
}

// newObject returns an empty object of a served version.
func newObject(apiVersion, kind string) (kube.Object, bool) {
	if apiVersion == gatewayv1.GroupName+"/v1beta1" {
		switch kube.Kind(kind) {
		case kube.KindGatewayClass, kube.KindGateway, kube.KindHTTPRoute, kube.KindReferenceGrant:
			// The Go types of v1beta1 are those of v1.
			apiVersion = gatewayv1.GroupVersion.String()
		}
	}
	if apiVersion != kube.Kind(kind).APIVersion() {
		return nil, false
	}
	switch kube.Kind(kind) {
	case kube.KindNamespace:
		return &corev1.Namespace{}, true
	case kube.KindServiceAccount:
		return &corev1.ServiceAccount{}, true
	case kube.KindPod:
		return &corev1.Pod{}, true
	case kube.KindService:
		return &corev1.Service{}, true
	case kube.KindSecret:
		return &corev1.Secret{}, true
	case kube.KindConfigMap:
		return &corev1.ConfigMap{}, true
	case kube.KindEndpointSlice:
		return &discoveryv1.EndpointSlice{}, true
	case kube.KindGatewayClass:
		return &gatewayv1.GatewayClass{}, true
	case kube.KindGateway:
		return &gatewayv1.Gateway{}, true
	case kube.KindListenerSet:
		return &gatewayv1.ListenerSet{}, true
	case kube.KindHTTPRoute:
		return &gatewayv1.HTTPRoute{}, true
	case kube.KindGRPCRoute:
		return &gatewayv1.GRPCRoute{}, true
	case kube.KindTLSRoute:
		return &gatewayv1.TLSRoute{}, true
	case kube.KindTCPRoute:
		return &gatewayv1.TCPRoute{}, true
	case kube.KindUDPRoute:
		return &gatewayv1.UDPRoute{}, true
	case kube.KindReferenceGrant:
		return &gatewayv1.ReferenceGrant{}, true
	case kube.KindBackendTLSPolicy:
		return &gatewayv1.BackendTLSPolicy{}, true
	case kube.KindBackendTrafficPolicy:
		return &v1alpha1.BackendTrafficPolicy{}, true
	}
	return nil, false
}

// notOurs tells of an object that is not of the set: a version that is not served
// of a kind that is, or another kind.
func (p *parser) notOurs(key kube.Key, h header, prefix string) {
	if slices.Contains(kube.Kinds, key.Kind) {
		group, _, _ := strings.Cut(key.Kind.APIVersion(), "/")
		other, _, _ := strings.Cut(h.APIVersion, "/")
		if group == other || !strings.Contains(h.APIVersion, "/") {
			p.file.Broken = append(p.file.Broken, key)
			p.problem(key, prefix+"apiVersion", fmt.Sprintf("%q is not served", h.APIVersion), "use "+key.Kind.APIVersion())
			return
		}
	}
	if id := h.APIVersion + " " + h.Kind; !p.unknown[id] {
		p.unknown[id] = true
		p.warn(key, prefix+"kind", fmt.Sprintf("%s of %s is not known and has no effect", h.Kind, h.APIVersion), "")
	}
}

// decode fills in o; whatever is not exactly right becomes a problem.
func (p *parser) decode(key kube.Key, raw []byte, o kube.Object, prefix string) {
	strict, err := kjson.UnmarshalStrict(raw, o)
	if err != nil {
		field, text, cure := "", plain(err), ""
		var typ *json.UnmarshalTypeError
		if errors.As(err, &typ) {
			field, text = typ.Field, fmt.Sprintf("is %s, and should be %s", found(typ.Value), wanted(typ.Type))
			if typ.Type.Kind() == reflect.String && (typ.Value == "bool" || strings.HasPrefix(typ.Value, "number")) {
				cure = `put it in quotes; YAML reads yes, no, on, off, y, n and numbers as something else`
			}
		}
		p.problem(key, prefix+field, text, cure)
		return
	}
	for _, err := range strict {
		text, field := err.Error(), ""
		var fe kjson.FieldError
		if errors.As(err, &fe) {
			field = fe.FieldPath()
			text, _, _ = strings.Cut(text, " \"")
		}
		cure := ""
		if strings.HasPrefix(text, "unknown field") {
			text, cure = "is not a field", suggest(reflect.TypeOf(o), field)
		} else if strings.HasPrefix(text, "duplicate field") {
			text, cure = "is there twice", "remove one of the two"
		}
		p.problem(key, prefix+field, text, cure)
	}
}

// validate does with an object that decodes what the API server does with it, and
// returns it with the defaults of its schema.
func (p *parser) validate(key kube.Key, raw []byte, o kube.Object, prefix string) kube.Object {
	var content map[string]any
	if err := kjson.UnmarshalCaseSensitivePreserveInts(raw, &content); err != nil {
		p.problem(key, strings.TrimSuffix(prefix, "."), plain(err), "")
		return o
	}
	problems := validate.Object(string(key.Kind), content)
	for _, v := range problems {
		p.problem(key, prefix+v.Field, v.Text, v.Cure)
	}
	if len(problems) > 0 {
		return o
	}
	whole, _ := newObject(key.Kind.APIVersion(), string(key.Kind))
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(content, whole); err != nil {
		p.problem(key, strings.TrimSuffix(prefix, "."), plain(err), "")
		return o
	}
	return whole
}

// found says in the words of YAML what encoding/json calls a value.
func found(value string) string {
	switch word, _, _ := strings.Cut(value, " "); word {
	case "object":
		return "a map"
	case "array":
		return "a list"
	case "bool":
		return "true or false"
	default:
		return "a " + value
	}
}

// wanted says in the words of YAML what a Go type is.
func wanted(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Slice, reflect.Array:
		return "a list"
	case reflect.Map, reflect.Struct:
		return "a map"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return "a whole number"
	default:
		return t.String()
	}
}

func plain(err error) string {
	return strings.TrimPrefix(err.Error(), "json: ")
}

// suggest finds the field of a type that an unknown one was probably meant to be.
func suggest(t reflect.Type, path string) string {
	segments := strings.Split(path, ".")
	for _, s := range segments[:len(segments)-1] {
		name, indexes, _ := strings.Cut(s, "[")
		f, ok := jsonFields(t)[name]
		if !ok {
			return ""
		}
		t = f
		for range strings.Count(indexes, "]") {
			if t = deref(t); t.Kind() == reflect.Slice || t.Kind() == reflect.Map {
				t = t.Elem()
			}
		}
	}
	name := segments[len(segments)-1]
	best, distance := "", len(name)/2+1
	var names []string
	for candidate := range jsonFields(t) {
		names = append(names, candidate)
	}
	slices.Sort(names)
	for _, candidate := range names {
		if d := editDistance(strings.ToLower(name), strings.ToLower(candidate)); d < distance {
			best, distance = candidate, d
		}
	}
	if best != "" {
		return fmt.Sprintf("did you mean %q?", best)
	}
	if len(names) > 0 && len(names) <= 12 {
		return "known are " + strings.Join(names, ", ")
	}
	return ""
}

func deref(t reflect.Type) reflect.Type {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t
}

// jsonFields returns the types of a struct's fields by their names in JSON.
func jsonFields(t reflect.Type) map[string]reflect.Type {
	t = deref(t)
	out := map[string]reflect.Type{}
	if t.Kind() != reflect.Struct {
		return out
	}
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous && name == "" || strings.Contains(options, "inline") {
			for n, ft := range jsonFields(f.Type) {
				out[n] = ft
			}
			continue
		}
		if name != "" && name != "-" {
			out[name] = f.Type
		}
	}
	return out
}

// editDistance is the number of letters to insert, remove or replace.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			next := min(row[j+1]+1, row[j]+1, diagonal+cost)
			diagonal, row[j+1] = row[j+1], next
		}
	}
	return row[len(b)]
}
