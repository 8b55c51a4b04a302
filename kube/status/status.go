// Package status keeps the statuses of objects as files, where there is no API
// server to keep them: DIR/KIND/NAMESPACE/NAME.yaml (DIR/KIND/NAME.yaml for kinds
// without namespaces), each an object with its status in place of its spec; and
// DIR/files.yaml with what is wrong in files of objects.
//
// A [Writer] owns the directory. Files are replaced as a whole; one that cannot be
// written does not stop the others and is tried again with its next change.
package status

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/sluice-mesh/sluice/kube"
)

// Writer writes statuses. One goroutine may use it at a time.
type Writer struct {
	dir        string
	controller string
	now        func() time.Time
	written    map[kube.Key]written
	files      map[string]kube.File
}

type written struct {
	status kube.Status // with lastTransitionTime
	text   []byte
}

// record is the content of a file.
type record struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        metadata        `json:"metadata"`
	Status          json.RawMessage `json:"status"`
}

type metadata struct {
	Namespace  string `json:"namespace,omitempty"`
	Name       string `json:"name"`
	Generation int64  `json:"generation,omitempty"`
}

type plainStatus struct {
	Conditions []metav1.Condition `json:"conditions"`
}

// New makes the directory if need be and reads what is there, so that conditions
// keep their lastTransitionTime. Files that it cannot read count as absent.
// controller is the name under which statuses of parents and ancestors are written;
// those under other names are left as they are.
func New(dir, controller string) (*Writer, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make status directory: %w", err)
	}
	w := &Writer{dir: dir, controller: controller, now: time.Now, written: map[kube.Key]written{}, files: map[string]kube.File{}}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() {
			return nil
		}
		if strings.HasPrefix(e.Name(), ".") || filepath.Dir(path) == dir && e.Name() == filesName {
			// Of an earlier run: a file that was being written, and problems that will be
			// found again if they are still there.
			return os.Remove(path)
		}
		if filepath.Ext(path) != ".yaml" || filepath.Dir(path) == dir {
			return nil
		}
		if text, err := os.ReadFile(path); err == nil {
			if s, ok := parse(text); ok && w.path(s.Key) == path {
				w.written[s.Key] = written{s, text}
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read statuses: %w", err)
	}
	return w, nil
}

func parse(text []byte) (kube.Status, bool) {
	var r record
	if err := yaml.Unmarshal(text, &r); err != nil || r.Kind == "" || r.Metadata.Name == "" {
		return kube.Status{}, false
	}
	s := kube.Status{
		Key:        kube.Key{Kind: kube.Kind(r.Kind), Namespace: r.Metadata.Namespace, Name: r.Metadata.Name},
		Generation: r.Metadata.Generation,
	}
	var err error
	switch s.Key.Kind {
	case kube.KindGatewayClass:
		s.GatewayClass = &gatewayv1.GatewayClassStatus{}
		err = json.Unmarshal(r.Status, s.GatewayClass)
	case kube.KindGateway:
		s.Gateway = &gatewayv1.GatewayStatus{}
		err = json.Unmarshal(r.Status, s.Gateway)
	case kube.KindListenerSet:
		s.ListenerSet = &gatewayv1.ListenerSetStatus{}
		err = json.Unmarshal(r.Status, s.ListenerSet)
	case kube.KindBackendTLSPolicy, kube.KindBackendTrafficPolicy:
		s.Policy = &gatewayv1.PolicyStatus{}
		err = json.Unmarshal(r.Status, s.Policy)
	case kube.KindHTTPRoute, kube.KindGRPCRoute, kube.KindTLSRoute, kube.KindTCPRoute, kube.KindUDPRoute:
		s.Route = &gatewayv1.RouteStatus{}
		err = json.Unmarshal(r.Status, s.Route)
	default:
		var p plainStatus
		err = json.Unmarshal(r.Status, &p)
		s.Conditions = p.Conditions
	}
	return s, err == nil
}

// filesName is the file with what is wrong in files of objects.
const filesName = "files.yaml"

// maxNameBytes leaves room in NAME_MAX (255) for what is put around a name, which
// may itself have 253 bytes.
const maxNameBytes = 200

// path returns the file of an object.
func (w *Writer) path(key kube.Key) string {
	name := key.Name
	if len(name) > maxNameBytes {
		name = fmt.Sprintf("%s-%x", name[:maxNameBytes], sha256.Sum256([]byte(name)))[:maxNameBytes+17]
	}
	return filepath.Join(w.dir, string(key.Kind), key.Namespace, name+".yaml")
}

// Write writes statuses that differ from what is on disk, and removes those of
// gone objects. The error joins those of all files.
func (w *Writer) Write(statuses []kube.Status, gone []kube.Key) error {
	var errs []error
	for _, s := range statuses {
		errs = append(errs, w.write(s))
	}
	for _, key := range gone {
		errs = append(errs, w.remove(key))
	}
	return errors.Join(errs...)
}

// Prune removes the statuses of all objects that keep does not have. It is for the
// first full state after a start.
func (w *Writer) Prune(keep map[kube.Key]bool) error {
	var errs []error
	for _, key := range slices.SortedFunc(maps.Keys(w.written), kube.Key.Compare) {
		if !keep[key] {
			errs = append(errs, w.remove(key))
		}
	}
	return errors.Join(errs...)
}

// Get returns a status as it was last written.
func (w *Writer) Get(key kube.Key) (kube.Status, bool) {
	s, ok := w.written[key]
	return s.status, ok
}

func (w *Writer) write(s kube.Status) error {
	if !safe(s.Key) {
		return fmt.Errorf("write status of %s: not a name", s.Key)
	}
	before := w.read(s.Key)
	s = Merge(before.status, s, w.controller)
	s = w.timed(s, before.status)
	text, err := marshal(s)
	if err != nil {
		return fmt.Errorf("write status of %s: %w", s.Key, err)
	}
	if bytes.Equal(text, before.text) {
		return nil
	}
	if err := replaceFile(w.path(s.Key), text); err != nil {
		return fmt.Errorf("write status of %s: %w", s.Key, err)
	}
	w.written[s.Key] = written{s, text}
	return nil
}

// read returns a status as it is on disk: another controller may have written into
// the file since.
func (w *Writer) read(key kube.Key) written {
	text, err := os.ReadFile(w.path(key))
	if err != nil {
		return written{}
	}
	if known := w.written[key]; bytes.Equal(text, known.text) {
		return known
	}
	s, ok := parse(text)
	if !ok || s.Key != key {
		return written{}
	}
	return written{s, text}
}

func safe(key kube.Key) bool {
	for _, part := range []string{string(key.Kind), key.Name} {
		if part == "" || part == "." || part == ".." || strings.ContainsAny(part, "/\x00") {
			return false
		}
	}
	return key.Namespace != ".." && !strings.ContainsAny(key.Namespace, "/\x00")
}

func (w *Writer) remove(key kube.Key) error {
	if _, ok := w.written[key]; !ok {
		return nil
	}
	path := w.path(key)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove status of %s: %w", key, err)
	}
	delete(w.written, key)
	// Directories go with their last file; it does not matter if they cannot.
	if key.Namespace != "" {
		_ = os.Remove(filepath.Dir(path))
	}
	return nil
}

// timed copies a status with the time of the last change of each condition's
// status.
func (w *Writer) timed(s, before kube.Status) kube.Status {
	now := metav1.NewTime(w.now().UTC().Truncate(time.Second))
	stamp := func(conditions, before []metav1.Condition) []metav1.Condition {
		out := slices.Clone(conditions)
		for i := range out {
			out[i].LastTransitionTime = now
			for j := range before {
				if before[j].Type == out[i].Type && before[j].Status == out[i].Status && !before[j].LastTransitionTime.IsZero() {
					out[i].LastTransitionTime = before[j].LastTransitionTime
				}
			}
		}
		return out
	}
	switch {
	case s.GatewayClass != nil:
		c := *s.GatewayClass
		var b gatewayv1.GatewayClassStatus
		if before.GatewayClass != nil {
			b = *before.GatewayClass
		}
		c.Conditions = stamp(c.Conditions, b.Conditions)
		s.GatewayClass = &c
	case s.Gateway != nil:
		c := *s.Gateway
		var b gatewayv1.GatewayStatus
		if before.Gateway != nil {
			b = *before.Gateway
		}
		c.Conditions = stamp(c.Conditions, b.Conditions)
		c.Listeners = slices.Clone(c.Listeners)
		for i := range c.Listeners {
			var old []metav1.Condition
			for j := range b.Listeners {
				if b.Listeners[j].Name == c.Listeners[i].Name {
					old = b.Listeners[j].Conditions
				}
			}
			c.Listeners[i].Conditions = stamp(c.Listeners[i].Conditions, old)
		}
		s.Gateway = &c
	case s.ListenerSet != nil:
		c := *s.ListenerSet
		var b gatewayv1.ListenerSetStatus
		if before.ListenerSet != nil {
			b = *before.ListenerSet
		}
		c.Conditions = stamp(c.Conditions, b.Conditions)
		c.Listeners = slices.Clone(c.Listeners)
		for i := range c.Listeners {
			var old []metav1.Condition
			for j := range b.Listeners {
				if b.Listeners[j].Name == c.Listeners[i].Name {
					old = b.Listeners[j].Conditions
				}
			}
			c.Listeners[i].Conditions = stamp(c.Listeners[i].Conditions, old)
		}
		s.ListenerSet = &c
	case s.Policy != nil:
		c := *s.Policy
		c.Ancestors = slices.Clone(c.Ancestors)
		for i := range c.Ancestors {
			if string(c.Ancestors[i].ControllerName) != w.controller {
				continue
			}
			var old []metav1.Condition
			if before.Policy != nil {
				for j := range before.Policy.Ancestors {
					if b := before.Policy.Ancestors[j]; b.ControllerName == c.Ancestors[i].ControllerName && sameParent(b.AncestorRef, c.Ancestors[i].AncestorRef) {
						old = before.Policy.Ancestors[j].Conditions
					}
				}
			}
			c.Ancestors[i].Conditions = stamp(c.Ancestors[i].Conditions, old)
		}
		s.Policy = &c
	case s.Route != nil:
		c := *s.Route
		c.Parents = slices.Clone(c.Parents)
		for i := range c.Parents {
			if string(c.Parents[i].ControllerName) != w.controller {
				continue
			}
			var old []metav1.Condition
			if before.Route != nil {
				for j := range before.Route.Parents {
					if b := before.Route.Parents[j]; b.ControllerName == c.Parents[i].ControllerName && sameParent(b.ParentRef, c.Parents[i].ParentRef) {
						old = before.Route.Parents[j].Conditions
					}
				}
			}
			c.Parents[i].Conditions = stamp(c.Parents[i].Conditions, old)
		}
		s.Route = &c
	default:
		s.Conditions = stamp(s.Conditions, before.Conditions)
	}
	return s
}

func sameParent(a, b gatewayv1.ParentReference) bool {
	return a.Name == b.Name && same(a.Group, b.Group) && same(a.Kind, b.Kind) && same(a.Namespace, b.Namespace) &&
		same(a.SectionName, b.SectionName) && same(a.Port, b.Port)
}

func same[T comparable](a, b *T) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}

func marshal(s kube.Status) ([]byte, error) {
	var status any
	switch {
	case s.GatewayClass != nil:
		status = s.GatewayClass
	case s.Gateway != nil:
		status = s.Gateway
	case s.ListenerSet != nil:
		status = s.ListenerSet
	case s.Route != nil:
		status = s.Route
	case s.Policy != nil:
		status = s.Policy
	default:
		status = plainStatus{s.Conditions}
	}
	raw, err := json.Marshal(status)
	if err != nil {
		return nil, err
	}
	return yaml.Marshal(record{
		TypeMeta: metav1.TypeMeta{APIVersion: s.Key.Kind.APIVersion(), Kind: string(s.Key.Kind)},
		Metadata: metadata{s.Key.Namespace, s.Key.Name, s.Generation},
		Status:   raw,
	})
}

// WriteFiles notes what is wrong in files, as a kube.Change tells it, and rewrites
// DIR/files.yaml.
func (w *Writer) WriteFiles(files []kube.File) error {
	if len(files) == 0 {
		return nil
	}
	for _, f := range files {
		if len(f.Problems) == 0 {
			delete(w.files, f.Path)
		} else {
			w.files[f.Path] = f
		}
	}
	return w.rewriteFiles()
}

// fileRecord is an entry of files.yaml.
type fileRecord struct {
	Path     string          `json:"path"`
	Problems []problemRecord `json:"problems"`
}

type problemRecord struct {
	Severity string `json:"severity"`
	Line     int    `json:"line,omitempty"`
	Document int    `json:"document,omitempty"`
	Object   string `json:"object,omitempty"`
	Field    string `json:"field,omitempty"`
	Text     string `json:"text"`
	Cure     string `json:"cure,omitempty"`
}

func (w *Writer) rewriteFiles() error {
	path := filepath.Join(w.dir, filesName)
	if len(w.files) == 0 {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the problems of files: %w", err)
		}
		return nil
	}
	var out []fileRecord
	for _, name := range slices.Sorted(maps.Keys(w.files)) {
		r := fileRecord{Path: name}
		for _, p := range w.files[name].Problems {
			severity, object := "error", ""
			if p.Warning {
				severity = "warning"
			}
			if !p.Object.IsZero() {
				object = p.Object.String()
			}
			r.Problems = append(r.Problems, problemRecord{severity, p.Line, p.Document, object, p.Field, p.Text, p.Cure})
		}
		out = append(out, r)
	}
	text, err := yaml.Marshal(out)
	if err == nil {
		err = replaceFile(path, text)
	}
	if err != nil {
		return fmt.Errorf("write the problems of files: %w", err)
	}
	return nil
}

// replaceFile writes a file so that a reader sees all of the old or all of the new.
func replaceFile(path string, text []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.Write(text)
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
