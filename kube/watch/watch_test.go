package watch

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-mesh/sluice/kube"
)

// watcher runs a Folder and hands its changes over.
type watcher struct {
	t       *testing.T
	changes chan kube.Change
	stop    func()
}

func start(t *testing.T, cfg Config) *watcher {
	t.Helper()
	f, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	w := &watcher{t: t, changes: make(chan kube.Change, 1000)}
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx, func(c kube.Change) { w.changes <- c }) }()
	w.stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	t.Cleanup(func() { w.stop() })
	return w
}

// next returns the next change in words.
func (w *watcher) next() string {
	w.t.Helper()
	select {
	case c := <-w.changes:
		if !c.Synced {
			w.t.Error("a change before the whole set is known")
		}
		return describe(c)
	case <-time.After(20 * time.Second):
		w.t.Fatal("no change")
		return ""
	}
}

// want reads changes until all that is wanted has come, in any number of changes,
// and nothing else.
func (w *watcher) want(lines ...string) {
	w.t.Helper()
	var got []string
	for len(got) < len(lines) {
		if text := w.next(); text != "" {
			got = append(got, strings.Split(text, "\n")...)
		}
	}
	slices.Sort(got)
	slices.Sort(lines)
	if !slices.Equal(got, lines) {
		w.t.Fatalf("got\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(lines, "\n  "))
	}
}

func describe(c kube.Change) string {
	var lines []string
	for _, o := range c.Upserts {
		line := fmt.Sprintf("put %s #%d", kube.KeyOf(o), o.GetGeneration())
		if v := o.GetAnnotations()["v"]; v != "" {
			line += " v=" + v
		}
		lines = append(lines, line)
	}
	for _, key := range c.Deletes {
		lines = append(lines, "delete "+key.String())
	}
	for _, f := range c.Files {
		if len(f.Problems) == 0 {
			lines = append(lines, "right "+filepath.Base(f.Path))
		}
		for _, p := range f.Problems {
			p.File = filepath.Base(p.File)
			lines = append(lines, "wrong "+p.Error())
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func account(name, v string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: %s, namespace: shop, annotations: {v: %q}}\n", name, v)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestFilesComeChangeAndGo(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.yaml", account("a", "1")+"---\n"+account("b", "1"))
	write(t, dir+"/sub/deep/c.yml", account("c", "1"))
	write(t, dir+"/d.json", `{"apiVersion":"v1","kind":"ServiceAccount","metadata":{"name":"d","namespace":"shop"}}`)
	write(t, dir+"/README.md", "not ours")
	write(t, dir+"/.hidden.yaml", account("hidden", "1"))
	write(t, dir+"/.git/x.yaml", account("hidden", "1"))
	w := start(t, Config{Directories: []string{dir}})
	if got, want := w.next(), "put ServiceAccount shop/a #1 v=1\nput ServiceAccount shop/b #1 v=1\nput ServiceAccount shop/c #1 v=1\nput ServiceAccount shop/d #1"; got != want {
		t.Fatalf("the first change has\n%s\nwant\n%s", got, want)
	}
	write(t, dir+"/a.yaml", account("a", "2")+"---\n"+account("b", "1"))
	w.want("put ServiceAccount shop/a #1 v=2")
	write(t, dir+"/a.yaml", account("b", "1"))
	w.want("delete ServiceAccount shop/a")
	// In place again, as it was: nothing to report. Then a new file in a new folder.
	write(t, dir+"/a.yaml", account("b", "1"))
	write(t, dir+"/.hidden.yaml", account("hidden", "2"))
	write(t, dir+"/new/folder/e.yaml", account("e", "1"))
	w.want("put ServiceAccount shop/e #1 v=1")
	must(t, os.Remove(dir+"/a.yaml"))
	w.want("delete ServiceAccount shop/b")
	must(t, os.Rename(dir+"/new", dir+"/renamed"))
	must(t, os.Rename(dir+"/sub", t.TempDir()+"/elsewhere"))
	w.want("delete ServiceAccount shop/c")
	write(t, dir+"/renamed/folder/e.yaml", account("e", "2"))
	w.want("put ServiceAccount shop/e #1 v=2")
}

func TestGenerations(t *testing.T) {
	dir := t.TempDir()
	service := func(annotation, port string) string {
		return fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: shop, annotations: {v: %q}}\nspec: {clusterIP: None, ports: [{port: %s}]}\n", annotation, port)
	}
	write(t, dir+"/a.yaml", service("1", "80"))
	w := start(t, Config{Directories: []string{dir}})
	w.want("put Service shop/a #1 v=1")
	write(t, dir+"/a.yaml", service("2", "80"))
	w.want("put Service shop/a #1 v=2")
	write(t, dir+"/a.yaml", service("2", "81"))
	w.want("put Service shop/a #2 v=2")
}

func TestWrongFiles(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.yaml", account("a", "1")+"---\n"+account("b", "1"))
	w := start(t, Config{Directories: []string{dir}})
	w.want("put ServiceAccount shop/a #1 v=1", "put ServiceAccount shop/b #1 v=1")
	// One document becomes wrong: its object stays as it was, the other goes on.
	write(t, dir+"/a.yaml", strings.Replace(account("a", "2"), "metadata", "metdata", 1)+"---\n"+account("b", "2"))
	w.want("put ServiceAccount shop/b #1 v=2",
		`wrong a.yaml:1: document 1: ServiceAccount: metdata: is not a field (did you mean "metadata"?)`)
	write(t, dir+"/a.yaml", strings.Replace(account("a", "2"), "annotations", "anotations", 1)+"---\n"+account("b", "2"))
	w.want(`wrong a.yaml:1: document 1: ServiceAccount shop/a: metadata.anotations: is not a field; the version before stays in force (did you mean "annotations"?)`)
	// The file breaks as a whole.
	write(t, dir+"/a.yaml", "{")
	w.want("wrong a.yaml:1: document 1: line 1: did not find expected node content")
	// It is mended.
	write(t, dir+"/a.yaml", account("a", "3"))
	w.want("put ServiceAccount shop/a #1 v=3", "delete ServiceAccount shop/b", "right a.yaml")
}

func TestDuplicates(t *testing.T) {
	first, second := t.TempDir(), t.TempDir()
	write(t, second+"/a.yaml", account("a", "second"))
	write(t, first+"/z.yaml", account("a", "first"))
	w := start(t, Config{Directories: []string{first, second}})
	w.want("put ServiceAccount shop/a #1 v=first",
		"wrong a.yaml:1: document 1: ServiceAccount shop/a: is also in "+first+"/z.yaml, which takes precedence (remove one of the two)")
	write(t, first+"/b.yaml", account("a", "earlier"))
	w.want("put ServiceAccount shop/a #1 v=earlier",
		"wrong z.yaml:1: document 1: ServiceAccount shop/a: is also in "+first+"/b.yaml, which takes precedence (remove one of the two)",
		"wrong a.yaml:1: document 1: ServiceAccount shop/a: is also in "+first+"/b.yaml, which takes precedence (remove one of the two)")
	must(t, os.Remove(first+"/z.yaml"))
	must(t, os.Remove(first+"/b.yaml"))
	w.want("put ServiceAccount shop/a #1 v=second", "right a.yaml", "right z.yaml")
}

// TestEditors replaces files in the ways that editors and git do: at no time may
// an object go away.
func TestEditors(t *testing.T) {
	dir := t.TempDir()
	path := dir + "/a.yaml"
	write(t, path, account("a", "1"))
	w := start(t, Config{Directories: []string{dir}})
	w.want("put ServiceAccount shop/a #1 v=1")

	// A new file is moved over the old one.
	write(t, dir+"/.a.yaml.tmp", account("a", "2"))
	must(t, os.Rename(dir+"/.a.yaml.tmp", path))
	w.want("put ServiceAccount shop/a #1 v=2")

	// vim: the old file becomes the backup, a new one is written, the backup goes.
	must(t, os.Rename(path, path+"~"))
	write(t, path, account("a", "3"))
	must(t, os.Remove(path+"~"))
	w.want("put ServiceAccount shop/a #1 v=3")

	// git: the old file is removed, a new one written.
	must(t, os.Remove(path))
	write(t, path, account("a", "4"))
	w.want("put ServiceAccount shop/a #1 v=4")

	// In parts, with time between them for the watcher to see each.
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	must(t, err)
	text := account("a", "5") + "---\n" + account("b", "5")
	for _, part := range []string{text[:30], text[30:]} {
		_, err := f.WriteString(part)
		must(t, err)
		write(t, dir+"/tick.yaml", account("tick", part[:3]))
		w.want("put ServiceAccount shop/tick #1 v=" + part[:3])
	}
	must(t, f.Close())
	w.want("put ServiceAccount shop/a #1 v=5", "put ServiceAccount shop/b #1 v=5")

	// A hard link.
	write(t, dir+"/.c", account("c", "6"))
	must(t, os.Link(dir+"/.c", dir+"/c.yaml"))
	w.want("put ServiceAccount shop/c #1 v=6")
}

// TestConfigMap changes a folder as kubelet changes a mounted ConfigMap: files are
// links through "..data", which is replaced as a whole.
func TestConfigMap(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/..1/a.yaml", account("a", "1"))
	write(t, dir+"/..1/b.yaml", account("b", "1"))
	must(t, os.Symlink("..1", dir+"/..data"))
	must(t, os.Symlink("..data/a.yaml", dir+"/a.yaml"))
	must(t, os.Symlink("..data/b.yaml", dir+"/b.yaml"))
	w := start(t, Config{Directories: []string{dir}})
	w.want("put ServiceAccount shop/a #1 v=1", "put ServiceAccount shop/b #1 v=1")
	for _, v := range []string{"2", "3"} {
		write(t, dir+"/.."+v+"/a.yaml", account("a", v))
		write(t, dir+"/.."+v+"/b.yaml", account("b", "1"))
		must(t, os.Symlink(".."+v, dir+"/..data_tmp"))
		must(t, os.Rename(dir+"/..data_tmp", dir+"/..data"))
		w.want("put ServiceAccount shop/a #1 v=" + v)
	}
	must(t, os.RemoveAll(dir+"/..1"))
	must(t, os.RemoveAll(dir+"/..2"))
	write(t, dir+"/c.yaml", account("c", "1"))
	w.want("put ServiceAccount shop/c #1 v=1")
}

func TestLinks(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	write(t, outside+"/target.yaml", account("a", "1"))
	write(t, outside+"/folder/b.yaml", account("b", "1"))
	must(t, os.Symlink(outside+"/target.yaml", dir+"/a.yaml"))
	must(t, os.Symlink(outside+"/folder", dir+"/folder"))
	must(t, os.Symlink(dir, dir+"/loop"))
	w := start(t, Config{Directories: []string{dir}})
	w.want("put ServiceAccount shop/a #1 v=1", "put ServiceAccount shop/b #1 v=1")
	write(t, outside+"/target.yaml", account("a", "2"))
	w.want("put ServiceAccount shop/a #1 v=2")
	write(t, outside+"/folder/b.yaml", account("b", "2"))
	w.want("put ServiceAccount shop/b #1 v=2")
	must(t, os.Remove(dir+"/folder"))
	w.want("delete ServiceAccount shop/b")
	must(t, os.Symlink(outside+"/folder", dir+"/again"))
	w.want("put ServiceAccount shop/b #1 v=2")
}

func TestFolderThatComesLater(t *testing.T) {
	base := t.TempDir()
	root := base + "/not/yet/there"
	w := start(t, Config{Directories: []string{root}})
	if got := w.next(); got != "" {
		t.Fatalf("the first change has %s", got)
	}
	write(t, root+"/a.yaml", account("a", "1"))
	w.want("put ServiceAccount shop/a #1 v=1")
	// The folder itself is replaced.
	write(t, base+"/other/a.yaml", account("a", "2"))
	must(t, os.Rename(root, base+"/old"))
	must(t, os.Rename(base+"/other", root))
	w.want("put ServiceAccount shop/a #1 v=2")
	write(t, root+"/b.yaml", account("b", "1"))
	w.want("put ServiceAccount shop/b #1 v=1")
}

// TestGathering holds the receiver and wants all that happens meanwhile in one
// change.
func TestGathering(t *testing.T) {
	dir := t.TempDir()
	f, err := New(Config{Directories: []string{dir}})
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	entered, release := make(chan kube.Change), make(chan bool)
	go func() {
		_ = f.Run(ctx, func(c kube.Change) {
			entered <- c
			<-release
		})
	}()
	<-entered
	for i := range 50 {
		write(t, fmt.Sprintf("%s/%d.yaml", dir, i), account(fmt.Sprintf("a%d", i), "1"))
	}
	release <- true
	if c := <-entered; len(c.Upserts) != 50 {
		t.Errorf("%d of 50 objects in the change", len(c.Upserts))
	}
	close(release)
}

// TestOverflow lets the kernel's queue run over and wants nothing to be lost.
func TestOverflow(t *testing.T) {
	limit, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events")
	must(t, err)
	var events int
	if _, err := fmt.Sscan(string(limit), &events); err != nil || events > 100_000 {
		t.Skip("the queue is too long to fill:", strings.TrimSpace(string(limit)))
	}
	dir := t.TempDir()
	f, err := New(Config{Directories: []string{dir}})
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	entered, release := make(chan kube.Change), make(chan bool)
	go func() {
		_ = f.Run(ctx, func(c kube.Change) {
			entered <- c
			<-release
		})
	}()
	<-entered
	// Alternating names, because equal events in a row are merged.
	for i := range events/2 + 10 {
		name := fmt.Sprintf("%s/.%d", dir, i%2)
		file, err := os.Create(name)
		must(t, err)
		must(t, file.Close())
		if i%2 == 0 {
			must(t, os.Remove(dir+"/.0"))
		}
	}
	write(t, dir+"/after.yaml", account("after", "1"))
	release <- true
	select {
	case c := <-entered:
		if len(c.Upserts) != 1 {
			t.Errorf("lost: %s", describe(c))
		}
	case <-time.After(20 * time.Second):
		t.Error("lost")
	}
	close(release)
}

func serviceText(name, spec string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: %s, namespace: shop}\nspec: {ports: [{port: 80}]%s}\n", name, spec)
}

func TestClusterIPs(t *testing.T) {
	dir, state := t.TempDir(), t.TempDir()
	cfg := Config{
		Directories: []string{dir}, StateDir: state,
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd96::/112")},
	}
	write(t, dir+"/single.yaml", serviceText("single", ""))
	write(t, dir+"/dual.yaml", serviceText("dual", ", ipFamilyPolicy: PreferDualStack"))
	write(t, dir+"/six.yaml", serviceText("six", ", ipFamilies: [IPv6]"))
	write(t, dir+"/named.yaml", serviceText("named", ", clusterIP: 10.96.0.10"))
	write(t, dir+"/headless.yaml", serviceText("headless", ", clusterIP: None"))
	ips := func(c kube.Change) map[string]string {
		out := map[string]string{}
		for _, o := range c.Upserts {
			svc := o.(*corev1.Service)
			out[svc.Name] = fmt.Sprint(svc.Spec.ClusterIP, svc.Spec.ClusterIPs, svc.Spec.IPFamilies)
		}
		return out
	}
	w := start(t, cfg)
	first := ips(<-w.changes)
	parts := func(name string) []string {
		return strings.Fields(strings.NewReplacer("[", " ", "]", " ").Replace(first[name]))
	}
	if p := parts("single"); len(p) != 3 || p[0] != p[1] || p[2] != "IPv4" || !cfg.ServiceCIDRs[0].Contains(netip.MustParseAddr(p[0])) {
		t.Errorf("single: %v", p)
	}
	if p := parts("dual"); len(p) != 5 || p[3] != "IPv4" || p[4] != "IPv6" || !cfg.ServiceCIDRs[1].Contains(netip.MustParseAddr(p[2])) {
		t.Errorf("dual: %v", p)
	}
	if p := parts("six"); len(p) != 3 || p[2] != "IPv6" || !cfg.ServiceCIDRs[1].Contains(netip.MustParseAddr(p[0])) {
		t.Errorf("six: %v", p)
	}
	if p := parts("named"); p[0] != "10.96.0.10" {
		t.Errorf("named: %v", p)
	}
	if p := parts("headless"); p[0] != "None" {
		t.Errorf("headless: %v", p)
	}
	// An address that another has is refused; what was before stays.
	taken := parts("single")[0]
	write(t, dir+"/thief.yaml", serviceText("thief", ", clusterIP: "+taken))
	w.want("wrong thief.yaml:1: document 1: Service shop/thief: spec.clusterIP: " + taken + ": address is taken by Service shop/single (choose another, or leave clusterIP out)")
	write(t, dir+"/named.yaml", serviceText("named", ", clusterIP: "+taken))
	w.want("wrong named.yaml:1: document 1: Service shop/named: spec.clusterIP: " + taken + ": address is taken by Service shop/single; the version before stays in force (choose another, or leave clusterIP out)")
	write(t, dir+"/named.yaml", serviceText("named", ", clusterIP: 10.96.0.10"))
	w.want("right named.yaml")
	w.stop()
	w.stop = func() {}

	// A restart gives the same; the thief still loses.
	w = start(t, cfg)
	again := ips(<-w.changes)
	for name, ip := range first {
		if again[name] != ip {
			t.Errorf("%s moved from %s to %s", name, ip, again[name])
		}
	}
	if again["thief"] != "" {
		t.Errorf("the thief got %s", again["thief"])
	}
	// When the owner goes the address is free.
	must(t, os.Remove(dir+"/single.yaml"))
	w.want("delete Service shop/single", "put Service shop/thief #1", "right thief.yaml")
}

func TestRunningPods(t *testing.T) {
	dir, running := t.TempDir(), t.TempDir()
	write(t, dir+"/pod.yaml", `
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web, v: "1"}}
spec: {containers: [{name: c, image: i, ports: [{name: http, containerPort: 8080}]}]}
`)
	w := start(t, Config{Directories: []string{dir}, Running: running})
	w.want("put Pod shop/web #1")
	write(t, running+"/x.yaml", `
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {v: "2"}}
spec: {nodeName: node-1, serviceAccountName: web, containers: [{name: c, image: i}]}
status: {phase: Running, podIPs: [{ip: 10.0.0.1}]}
`)
	c := <-w.changes
	if len(c.Upserts) != 1 || len(c.Files) != 0 {
		t.Fatal(describe(c))
	}
	pod := c.Upserts[0].(*corev1.Pod)
	if pod.Labels["app"] != "web" || pod.Labels["v"] != "2" || pod.Status.PodIPs[0].IP != "10.0.0.1" ||
		pod.Spec.NodeName != "node-1" || pod.Spec.Containers[0].Ports[0].Name != "http" {
		t.Errorf("%+v", pod)
	}
	must(t, os.Remove(running+"/x.yaml"))
	c = <-w.changes
	if len(c.Upserts) != 1 || len(c.Upserts[0].(*corev1.Pod).Status.PodIPs) != 0 {
		t.Errorf("the declared Pod is not back: %s", describe(c))
	}
}
