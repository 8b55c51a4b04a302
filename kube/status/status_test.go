package status

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/sluice-mesh/sluice/kube"
)

func route(ok bool, message string) kube.Status {
	status := metav1.ConditionFalse
	if ok {
		status = metav1.ConditionTrue
	}
	return kube.Status{
		Key: kube.Key{Kind: kube.KindHTTPRoute, Namespace: "shop", Name: "reviews"}, Generation: 3,
		Route: &gatewayv1.RouteStatus{Parents: []gatewayv1.RouteParentStatus{{
			ParentRef: gatewayv1.ParentReference{Name: "web"}, ControllerName: "c",
			Conditions: []metav1.Condition{
				{Type: "Accepted", Status: status, Reason: "R", Message: message, ObservedGeneration: 3},
				{Type: "ResolvedRefs", Status: metav1.ConditionTrue, Reason: "R", ObservedGeneration: 3},
			},
		}}},
	}
}

func open(t *testing.T, dir string, now string) *Writer {
	t.Helper()
	w, err := New(dir, "c")
	if err != nil {
		t.Fatal(err)
	}
	setTime(t, w, now)
	return w
}

func setTime(t *testing.T, w *Writer, now string) {
	t.Helper()
	at, err := time.Parse(time.RFC3339, now)
	if err != nil {
		t.Fatal(err)
	}
	w.now = func() time.Time { return at }
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestTransitionTimes(t *testing.T) {
	dir := t.TempDir()
	path := dir + "/HTTPRoute/shop/reviews.yaml"
	write := func(w *Writer, s kube.Status) string {
		t.Helper()
		if err := w.Write([]kube.Status{s}, nil); err != nil {
			t.Fatal(err)
		}
		return read(t, path)
	}
	w := open(t, dir, "2026-01-01T00:00:00Z")
	first := write(w, route(true, "fine"))
	want := `apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  generation: 3
  name: reviews
  namespace: shop
status:
  parents:
  - conditions:
    - lastTransitionTime: "2026-01-01T00:00:00Z"
      message: fine
      observedGeneration: 3
      reason: R
      status: "True"
      type: Accepted
    - lastTransitionTime: "2026-01-01T00:00:00Z"
      message: ""
      observedGeneration: 3
      reason: R
      status: "True"
      type: ResolvedRefs
    controllerName: c
    parentRef:
      name: web
`
	if first != want {
		t.Errorf("got\n%s", first)
	}
	// The same later, by another process: not even the file is touched.
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	w = open(t, dir, "2026-01-02T00:00:00Z")
	write(w, route(true, "fine"))
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
		t.Error("an equal status was written again")
	}
	// Another message is no transition, another status is one.
	if got := write(w, route(true, "better")); strings.Contains(got, "01-02") || !strings.Contains(got, "better") {
		t.Errorf("got\n%s", got)
	}
	if got := write(w, route(false, "bad")); strings.Count(got, "2026-01-02") != 1 || strings.Count(got, "2026-01-01") != 1 {
		t.Errorf("got\n%s", got)
	}
}

func TestRemoveAndPrune(t *testing.T) {
	dir := t.TempDir()
	class := kube.Status{Key: kube.Key{Kind: kube.KindGatewayClass, Name: "sluice"}, GatewayClass: &gatewayv1.GatewayClassStatus{}}
	service := kube.Status{Key: kube.Key{Kind: kube.KindService, Namespace: "shop", Name: "reviews"}, Conditions: []metav1.Condition{{Type: "Programmed", Status: "False"}}}
	long := kube.Status{Key: kube.Key{Kind: kube.KindGateway, Namespace: "shop", Name: strings.Repeat("x", 253)}, Gateway: &gatewayv1.GatewayStatus{}}
	w := open(t, dir, "2026-01-01T00:00:00Z")
	if err := w.Write([]kube.Status{class, service, long, route(true, "")}, nil); err != nil {
		t.Fatal(err)
	}
	if got := read(t, dir+"/GatewayClass/sluice.yaml"); !strings.Contains(got, "name: sluice") {
		t.Error(got)
	}
	if err := w.Write(nil, []kube.Key{service.Key, {Kind: kube.KindPod, Namespace: "a", Name: "never"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir + "/Service/shop"); !os.IsNotExist(err) {
		t.Error("the removed status is still there:", err)
	}
	// What an earlier process left, with a file that it was writing.
	if err := os.WriteFile(dir+"/HTTPRoute/shop/.reviews.yaml-123", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	w = open(t, dir, "2026-01-01T00:00:00Z")
	if _, ok := w.Get(long.Key); !ok {
		t.Error("the long name is not found again")
	}
	if err := w.Prune(map[kube.Key]bool{class.Key: true}); err != nil {
		t.Fatal(err)
	}
	var left []string
	_ = filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			left = append(left, path)
		}
		return err
	})
	if len(left) != 1 || left[0] != dir+"/GatewayClass/sluice.yaml" {
		t.Errorf("left: %v", left)
	}
}

func TestOneFailureStopsNoOther(t *testing.T) {
	dir := t.TempDir()
	w := open(t, dir, "2026-01-01T00:00:00Z")
	// A file is where the folder should be.
	if err := os.WriteFile(dir+"/GatewayClass", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	class := kube.Status{Key: kube.Key{Kind: kube.KindGatewayClass, Name: "sluice"}, GatewayClass: &gatewayv1.GatewayClassStatus{}}
	bad := kube.Status{Key: kube.Key{Kind: kube.KindPod, Namespace: "..", Name: "x"}}
	err := w.Write([]kube.Status{class, bad, route(true, "")}, nil)
	if err == nil || !strings.Contains(err.Error(), "GatewayClass sluice") || !strings.Contains(err.Error(), "not a name") {
		t.Errorf("error: %v", err)
	}
	read(t, dir+"/HTTPRoute/shop/reviews.yaml")
	// It is written when it can be.
	if err := os.Remove(dir + "/GatewayClass"); err != nil {
		t.Fatal(err)
	}
	if err := w.Write([]kube.Status{class}, nil); err != nil {
		t.Error(err)
	}
	read(t, dir+"/GatewayClass/sluice.yaml")
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	w := open(t, dir, "2026-01-01T00:00:00Z")
	problem := kube.Problem{File: "/a.yaml", Document: 2, Line: 7, Object: kube.Key{Kind: kube.KindPod, Namespace: "a", Name: "b"}, Field: "spec", Text: "bad", Cure: "mend"}
	files := []kube.File{{Path: "/a.yaml", Problems: []kube.Problem{problem}}, {Path: "/b.yaml", Problems: []kube.Problem{{Text: "odd", Warning: true}}}}
	if err := w.WriteFiles(files); err != nil {
		t.Fatal(err)
	}
	got := read(t, dir+"/files.yaml")
	for _, want := range []string{"path: /a.yaml", "object: Pod a/b", "line: 7", "severity: error", "severity: warning", "cure: mend"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if err := w.WriteFiles([]kube.File{{Path: "/a.yaml"}, {Path: "/b.yaml"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir + "/files.yaml"); !os.IsNotExist(err) {
		t.Error("problems of right files are still there:", err)
	}
	// Problems of an earlier run are not believed.
	if err := w.WriteFiles(files); err != nil {
		t.Fatal(err)
	}
	open(t, dir, "2026-01-01T00:00:00Z")
	if _, err := os.Stat(dir + "/files.yaml"); !os.IsNotExist(err) {
		t.Error("problems of an earlier run are still there:", err)
	}
}
