package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/sluice-mesh/sluice/admin"
	"github.com/sluice-mesh/sluice/dataplane/workload/launch"
	"github.com/sluice-mesh/sluice/observe/flow"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) {
	launch.Init()
	os.Exit(m.Run())
}

// golden compares got with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v; write it with: go test ./cmd/sluice -update", err)
	}
	if got != string(want) {
		t.Errorf("output differs from %s (if it is right: go test ./cmd/sluice -update)\ngot:\n%s\nwant:\n%s", path, got, want)
	}
}

// TestOutput holds what a person sees. The name is the golden file's.
func TestOutput(t *testing.T) {
	n := start(t)
	n.flows.Add(demoFlows()...)
	tests := []struct {
		name string
		args string
		code int
	}{
		{"workloads", "workload list", exitOK},
		{"workloads-namespace", "workload list -n stock", exitOK},
		{"workloads-json", "workload list shop/web -o json", exitOK},
		{"services", "service list", exitOK},
		{"services-yaml", "service list reviews -o yaml", exitOK},
		{"gateways", "gateway list", exitOK},
		{"gateways-color", "gateway list --color always", exitOK},
		{"routes", "route list", exitOK},
		{"explain", "route explain GET http://reviews/reviews/7 --from shop/web -H x:y", exitOK},
		{"explain-refused", "route explain GET bookshop.example/ --color=always", exitNo},
		{"explain-json", "route explain GET bookshop.example/ -o json", exitNo},
		{"connections", "connections list", exitOK},
		{"backends", "backend list", exitOK},
		{"xds", "xds status", exitNo},
		{"config", "config show node", exitOK},
		{"config-json", "config show node -o json", exitOK},
		{"log-levels", "log level", exitOK},
		{"log-levels-json", "log level proxy/dns -o json", exitOK},
		{"observe", "observe", exitOK},
		{"observe-color", "observe --color always", exitOK},
		{"observe-json", "observe --type http -o json", exitOK},
		{"observe-jsonl", "observe --last 2 -o jsonl", exitOK},
		{"observe-yaml", "observe --verdict dropped --type socket -o yaml", exitOK},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			stdout, stderr, code := n.sluice(t.Context(), strings.Fields(test.args)...)
			if code != test.code || stderr != "" {
				t.Errorf("exit code %d, want %d; standard error %q", code, test.code, stderr)
			}
			if strings.Contains(stdout, "SECRET") {
				t.Error("a secret is shown")
			}
			golden(t, test.name, stdout)
		})
	}
}

// TestFilters: flags of the command line select in the agent as package filter
// says; here only that they arrive, in their order.
func TestFilters(t *testing.T) {
	n := start(t)
	n.flows.Add(demoFlows()...)
	tests := []struct {
		args string
		want int
	}{
		{"--last 0", 10},
		{"--last 3", 3},
		{"--type http", 3},
		{"--type http --not --http-status 5+", 2},
		{"--type http --type dns --type lost", 5},
		{"--type http --not --http-status 5+ --http-path ^/reviews", 1},
		{"--namespace shop --port 5432 --not --type lost", 1},
		{"--verdict dropped --verdict error --not --type lost", 4},
		{"-l app=web --not --type lost", 7},
		{"--since 450ms", 2},
		{"--since 2026-03-04T20:31:07.450Z --last 1", 1},
	}
	for _, test := range tests {
		stdout, stderr, code := n.sluice(t.Context(), append([]string{"observe", "-o", "jsonl"}, strings.Fields(test.args)...)...)
		if got := strings.Count(stdout, "\n"); got != test.want || code != exitOK {
			t.Errorf("%s: %d flows, want %d; exit code %d %s", test.args, got, test.want, code, stderr)
		}
	}
	n.flows.Add(demoFlows()...)
	n.flows.Add(demoFlows()...)
	if stdout, _, _ := n.sluice(t.Context(), "observe", "-o", "jsonl"); strings.Count(stdout, "\n") != defaultLast {
		t.Errorf("%d flows by default, want %d", strings.Count(stdout, "\n"), defaultLast)
	}
	if stdout, _, _ := n.sluice(t.Context(), "observe", "-o", "jsonl", "--since", "5m"); strings.Count(stdout, "\n") != 27 {
		t.Errorf("%d flows since then, want all 27", strings.Count(stdout, "\n"))
	}
	stdout, stderr, code := n.sluice(t.Context(), "observe", "--reason", "tls-handshake", "--not", "--type", "lost")
	if stdout != "" || stderr != "No flows.\n" || code != exitNo {
		t.Errorf("no flow: %q, %q, exit code %d", stdout, stderr, code)
	}
	stdout, _, code = n.sluice(t.Context(), "observe", "--reason", "tls-handshake", "--not", "--type", "lost", "-o", "json")
	if stdout != "[]\n" || code != exitNo {
		t.Errorf("no flow as JSON: %q, exit code %d", stdout, code)
	}
}

// lines passes each line on that is written.
type lines struct {
	rest []byte
	out  chan string
}

func (l *lines) Write(p []byte) (int, error) {
	l.rest = append(l.rest, p...)
	for {
		i := bytes.IndexByte(l.rest, '\n')
		if i < 0 {
			return len(p), nil
		}
		l.out <- string(l.rest[:i])
		l.rest = l.rest[i+1:]
	}
}

func TestFollow(t *testing.T) {
	n := start(t)
	n.flows.Add(demoFlows()...)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	follow := func(ctx context.Context, args ...string) (out chan string, stderr *bytes.Buffer, ended chan int) {
		out, stderr, ended = make(chan string), new(bytes.Buffer), make(chan int, 1)
		a := &app{stdout: &lines{out: out}, stderr: stderr, getenv: func(string) string { return "" }, now: func() time.Time { return now }}
		go func() {
			ended <- a.execute(ctx, append([]string{"observe", "--follow", "--run-dir", n.runDir}, args...))
		}()
		return out, stderr, ended
	}
	out, stderr, ended := follow(ctx, "--last", "1", "--type", "dns")
	if line := <-out; !strings.Contains(line, "DNS A reviews") {
		t.Errorf("first line %q", line)
	}
	n.flows.Add(demoFlows()...)
	if line := <-out; !strings.Contains(line, "DNS A reviews") {
		t.Errorf("second line %q", line)
	}
	cancel()
	if code := <-ended; code != exitOK || stderr.Len() > 0 {
		t.Errorf("interrupted it ended with %d, %q", code, stderr)
	}
}

// TestFollowRestart: who follows goes on with the next agent's flows, is told that
// some are missing, and gets none twice.
func TestFollowRestart(t *testing.T) {
	n := start(t)
	n.flows.Add(demoFlows()...)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out, ended := make(chan string), make(chan int, 1)
	a := &app{stdout: &lines{out: out}, stderr: new(bytes.Buffer), getenv: func(string) string { return "" }, now: func() time.Time { return now }}
	go func() {
		ended <- a.execute(ctx, []string{"observe", "--follow", "--run-dir", n.runDir, "--last", "1", "--type", "dns"})
	}()
	if line := <-out; !strings.Contains(line, "DNS A reviews") {
		t.Errorf("first line %q", line)
	}
	n.stops[admin.ProcessAgent]()
	again := startIn(t, n.runDir, admin.ProcessAgent)
	// What the proxy kept for the agent comes with what is new.
	for i, name := range []string{"old.", "kept.", "new."} {
		f := &flow.Flow{Time: now.Add(time.Duration(i-1)*time.Second + 1), Type: flow.TypeDNS, DNS: &flow.DNS{Query: name, Type: "A", RCode: "NOERROR"}}
		again.flows.Add(f)
	}
	if line := <-out; !strings.Contains(line, "lost an unknown number of events: the agent restarted (away from") {
		t.Errorf("after the restart: %q", line)
	}
	for _, want := range []string{"DNS A kept.", "DNS A new."} {
		if line := <-out; !strings.Contains(line, want) {
			t.Errorf("after that: %q, want %s", line, want)
		}
	}
	again.flows.Add(&flow.Flow{Time: now.Add(time.Hour), Type: flow.TypeDNS, DNS: &flow.DNS{Query: "later.", Type: "A", RCode: "NOERROR"}})
	if line := <-out; !strings.Contains(line, "DNS A later.") {
		t.Errorf("later: %q", line)
	}
	cancel()
	if code := <-ended; code != exitOK {
		t.Errorf("interrupted it ended with %d", code)
	}
}

func TestStatus(t *testing.T) {
	n := start(t)
	stdout, stderr, code := n.sluice(t.Context(), "status")
	for _, part := range []string{"cgroup connect", "sluice_services_v1", "workloads", "connections", "proxy Listener", "kernel"} {
		if !strings.Contains(stdout, part) {
			t.Errorf("the status does not show %q:\n%s", part, stdout)
		}
	}
	if code != exitOK || stderr != "" {
		t.Errorf("exit code %d, %q", code, stderr)
	}
	// One process away: the rest is shown, and the answer is no.
	n.stops[admin.ProcessProxy]()
	stdout, _, code = n.sluice(t.Context(), "status")
	if code != exitNo || !strings.Contains(stdout, "proxy") || !strings.Contains(stdout, "not running") {
		t.Errorf("without a proxy: exit code %d\n%s", code, stdout)
	}
	stdout, _, code = n.sluice(t.Context(), "status", "-o", "json")
	var got nodeStatus
	if err := json.Unmarshal([]byte(stdout), &got); err != nil || code != exitNo || got.Healthy || got.Processes[2].Error == "" || got.Processes[1].Status == nil {
		t.Errorf("as JSON: exit code %d, %v\n%s", code, err, stdout)
	}
}

// TestStatusTable holds the whole table; process numbers and times are fixed here.
func TestStatusTable(t *testing.T) {
	s := nodeStatus{Processes: []processStatus{
		{Process: admin.ProcessNode}, {Process: admin.ProcessAgent}, {Process: admin.ProcessProxy, Error: "too slow"},
	}}
	for i, status := range []admin.Status{nodeView{}.Status(), agentView{}.Status()} {
		status.Component = admin.Component{Name: admin.Processes[i], PID: 100 + i, Started: now.Add(-time.Hour * 50), Version: "v1", OK: i == 0, Detail: []string{"", "no BPF"}[i]}
		s.Processes[i].Status = &status
	}
	var out bytes.Buffer
	if err := writeStatus(&out, true, s, now); err != nil {
		t.Fatal(err)
	}
	golden(t, "status-color", out.String())
}

// TestHealth: what makes `sluice status` say no.
func TestHealth(t *testing.T) {
	ok := admin.Component{OK: true}
	for name, test := range map[string]struct {
		status *admin.Status
		want   bool
	}{
		"fine":                 {&admin.Status{Component: ok}, true},
		"away":                 {nil, false},
		"not ok":               {&admin.Status{}, false},
		"lacks what it needs":  {&admin.Status{Component: ok, Features: []admin.Feature{{Needed: true}}}, false},
		"lacks what is a plus": {&admin.Status{Component: ok, Features: []admin.Feature{{Needed: false}}}, true},
	} {
		if got := (processStatus{Status: test.status}).healthy(); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestMistakes(t *testing.T) {
	n := start(t)
	tests := []struct {
		args []string
		code int
		text string // on standard error
	}{
		{[]string{"workload", "list", "ghost"}, exitNo, "There is no workload ghost."},
		{[]string{"workload", "list", "-n", "stock", "web"}, exitNo, "There is no workload web in namespace stock."},
		{[]string{"service", "list", "shop/web"}, exitNo, "There is no service shop/web."},
		{[]string{"route", "list", "x"}, exitNo, "There is no route x."},
		{[]string{"gateway", "list", "x"}, exitNo, "There is no gateway x."},
		{[]string{"route", "explain", "GET", "reviews", "--from", "shop/ghost"}, exitNo, "workload shop/ghost"},
		{[]string{"log", "level", "moon"}, exitNo, "sluice log level"},
		{[]string{"log", "level", "proxy/moon"}, exitNo, "no running process has a component proxy/moon"},

		{[]string{"wrkload"}, exitUsage, "did you mean workload"},
		{[]string{"workload", "lst"}, exitUsage, `sluice workload has no command "lst"`},
		{[]string{"workload", "list", "-o", "xml"}, exitUsage, "want one of table, json, yaml"},
		{[]string{"workload", "list", "--color", "green"}, exitUsage, "want auto, always or never"},
		{[]string{"workload", "list", "--nope"}, exitUsage, "sluice workload list --help"},
		{[]string{"connections", "list", "x"}, exitUsage, "x"},
		{[]string{"route", "explain", "GET"}, exitUsage, "accepts 2 arg(s)"},
		{[]string{"route", "explain", "http://reviews/", "GET"}, exitUsage, "is not a method"},
		{[]string{"route", "explain", "GET", "ftp://reviews/"}, exitUsage, "want http:// or https://"},
		{[]string{"route", "explain", "GET", "http:///x"}, exitUsage, "and a host"},
		{[]string{"route", "explain", "GET", "http://me:pw@reviews/"}, exitUsage, "Authorization"},
		{[]string{"route", "explain", "GET", "reviews", "-H", "x"}, exitUsage, "Name: value"},
		{[]string{"route", "explain", "GET", "reviews", "--from", "web"}, exitUsage, "NAMESPACE/NAME"},
		{[]string{"observe", "--http-status", "5["}, exitUsage, "such as 5+"},
		{[]string{"observe", "--label", "a b"}, exitUsage, "label selector"},
		{[]string{"observe", "--not"}, exitUsage, "must stand before a filter"},
		{[]string{"observe", "--since", "yesterday"}, exitUsage, "a duration such as 5m"},
		{[]string{"observe", "--last", "-3"}, exitUsage, "0 for all"},
		{[]string{"observe", "--follow", "-o", "json"}, exitUsage, "-o jsonl"},
		{[]string{"log", "level", "proxy", "loud"}, exitUsage, "want debug, info, warn or error, or default"},
		{[]string{"log", "level", "proxy", "default"}, exitUsage, "want debug"},
		{[]string{"config", "show", "relay"}, exitUsage, "want node, agent or proxy"},
		{[]string{"completion", "tcsh"}, exitUsage, "tcsh"},

		{[]string{"run", "--name", "web", "--", "true"}, exitUsage, "-n NAMESPACE is missing"},
		{[]string{"run", "-n", "shop", "--", "true"}, exitUsage, "--name NAME is missing"},
		{[]string{"run", "-n", "shop", "--name", "web"}, exitUsage, "requires at least 1 arg"},
		{[]string{"run", "-n", "Shop", "--name", "web", "true"}, exitUsage, "RFC 1123"},
		{[]string{"run", "-n", "shop", "--name", "web", "--label", "app", "true"}, exitUsage, "want KEY=VALUE"},
		{[]string{"run", "-n", "shop", "--name", "web", "-l", "a=1", "-l", "a=2", "true"}, exitUsage, "given twice"},
		{[]string{"run", "-n", "shop", "--name", "web", "--port", "http", "true"}, exitUsage, "NAME=PORT"},
		{[]string{"run", "-n", "shop", "--name", "web", "--port", "http=80/sctp", "true"}, exitUsage, "NAME=PORT/udp"},
		{[]string{"run", "-n", "shop", "--name", "web", "--env", "X", "true"}, exitUsage, "NAME=VALUE"},
	}
	for _, test := range tests {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			stdout, stderr, code := n.sluice(t.Context(), test.args...)
			if code != test.code || !strings.Contains(strings.ToLower(stderr), strings.ToLower(test.text)) {
				t.Errorf("exit code %d, want %d; standard error %q, want %q in it", code, test.code, stderr, test.text)
			}
			if stdout != "" {
				t.Errorf("standard output %q", stdout)
			}
		})
	}
}

// TestNoNode: every command that needs the node says how to start it.
func TestNoNode(t *testing.T) {
	for _, args := range []string{
		"status", "observe", "observe -f", "workload list", "service list", "gateway list", "route list", "route explain GET reviews", "connections list",
		"xds status", "log level", "log level proxy", "config show agent", "run -n shop --name web -- true",
	} {
		stdout, stderr, code := sluice(t.Context(), t.TempDir(), strings.Fields(args)...)
		if code != exitUsage || !strings.Contains(stderr, "sluiced node --config DIR") || stdout != "" {
			t.Errorf("%s: exit code %d, %q, %q", args, code, stdout, stderr)
		}
	}
}

func TestLogLevel(t *testing.T) {
	n := start(t)
	set := func(args ...string) {
		t.Helper()
		if _, stderr, code := n.sluice(t.Context(), append([]string{"log", "level"}, args...)...); code != exitOK {
			t.Errorf("log level %v: exit code %d, %s", args, code, stderr)
		}
	}
	set("proxy", "warn")
	set("proxy/dns", "debug")
	set("xds", "error")
	stdout, _, _ := n.sluice(t.Context(), "log", "level")
	golden(t, "log-levels-changed", stdout)
	set("xds", "default")
	set("proxy/dns", "default")
	for _, p := range admin.Processes {
		for _, l := range n.levels[p].List() {
			if l.Own {
				t.Errorf("%s/%s still has its own level", p, l.Component)
			}
		}
	}
	if got := n.levels[admin.ProcessProxy].Default().String(); got != "WARN" {
		t.Errorf("the proxy's level is %s", got)
	}
}

func TestCompletion(t *testing.T) {
	n := start(t)
	for args, want := range map[string][]string{
		"workload list ":                 {"shop/reviews-v1", "shop/web", "stock/stock-1"},
		"workload list shop/web shop/":   {"shop/reviews-v1"},
		"workload list -n ":              {"shop", "stock"},
		"service list sto":               {"stock/stock"},
		"gateway list ":                  {"shop/edge"},
		"route list ":                    {"shop/reviews", "stock/stock"},
		"route explain GET x --from sh":  {"shop/reviews-v1", "shop/web"},
		"observe --to-service shop/r":    {"shop/reviews"},
		"observe --not --verdict dr":     {"dropped"},
		"observe --from-workload shop/w": {"shop/web"},
		"observe --route st":             {"stock/stock"},
		"observe -o jsonl":               {"jsonl"},
		"config show ":                   {"agent", "node", "proxy"},
		"log level pro":                  {"proxy", "proxy/dns", "proxy/xds"},
		"log level proxy de":             {"debug", "default"},
		"run -n st":                      {"stock"},
		"completion ":                    {"bash", "fish", "zsh"},
		"status -o y":                    {"yaml"},
	} {
		words := strings.Split(args, " ")
		stdout, _, _ := n.sluice(t.Context(), append([]string{cobra.ShellCompNoDescRequestCmd}, words...)...)
		var got []string
		for line := range strings.Lines(stdout) {
			if line = strings.TrimSpace(line); !strings.HasPrefix(line, ":") && strings.HasPrefix(line, words[len(words)-1]) {
				got = append(got, line)
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%q completes with %q, want %q", args, got, want)
		}
	}
	// Without a node there is nothing to offer, and no error in the shell.
	if stdout, _, code := sluice(t.Context(), t.TempDir(), cobra.ShellCompNoDescRequestCmd, "workload", "list", ""); code != exitOK || stdout != ":4\n" {
		t.Errorf("without a node: %q, exit code %d", stdout, code)
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if stdout, _, code := n.sluice(t.Context(), "completion", shell); code != exitOK || !strings.Contains(stdout, "sluice") {
			t.Errorf("completion %s: exit code %d", shell, code)
		}
	}
}

// TestReference: the committed reference is what the program says of itself.
func TestReference(t *testing.T) {
	path := filepath.Join("..", "..", "docs", "reference", "cli.md")
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	got, _, code := sluice(t.Context(), "/elsewhere", "docs")
	if code != exitOK || got != string(want) {
		t.Errorf("%s is out of date; run: go generate ./cmd/sluice", path)
	}
}

// TestHelp: every command has an example that it understands, and a text.
func TestHelp(t *testing.T) {
	a := &app{stdout: io.Discard, stderr: io.Discard, getenv: func(string) string { return "" }, now: time.Now}
	root := a.root()
	var visit func(c *cobra.Command)
	visit = func(c *cobra.Command) {
		if c.Name() != "help" && (c.Example == "" || c.Short == "" || strings.HasSuffix(c.Short, ".")) {
			t.Errorf("%s has no example or no short text", c.CommandPath())
		}
		for line := range strings.Lines(c.Example) {
			line, _, _ = strings.Cut(strings.TrimSpace(line), " | ")
			if !strings.HasPrefix(line, "sluice ") {
				continue
			}
			found, rest, err := root.Find(strings.Fields(strings.ReplaceAll(line, "'", ""))[1:])
			if err != nil || found != c && c.HasSubCommands() == false {
				t.Errorf("%s: the example %q is of %s: %v", c.CommandPath(), line, found.CommandPath(), err)
				continue
			}
			if err := found.ParseFlags(rest); err != nil {
				t.Errorf("%s: the example %q: %v", c.CommandPath(), line, err)
			}
		}
		for _, child := range c.Commands() {
			visit(child)
		}
	}
	visit(root)
	for _, args := range []string{"", "--help", "workload", "observe --help"} {
		if stdout, _, code := sluice(t.Context(), t.TempDir(), strings.Fields(args)...); code != exitOK || !strings.Contains(stdout, "Examples:") {
			t.Errorf("sluice %s: exit code %d\n%s", args, code, stdout)
		}
	}
}

func TestVersion(t *testing.T) {
	stdout, _, code := sluice(t.Context(), t.TempDir(), "version")
	if code != exitOK || !strings.HasPrefix(stdout, "sluice ") {
		t.Errorf("exit code %d, %q", code, stdout)
	}
	stdout, _, _ = sluice(t.Context(), t.TempDir(), "version", "-o", "yaml")
	var v map[string]string
	if err := yaml.Unmarshal([]byte(stdout), &v); err != nil || v["go"] == "" || v["version"] == "" {
		t.Errorf("%q, %v", stdout, err)
	}
}

func TestStartsWorkload(t *testing.T) {
	for args, want := range map[string]bool{
		"run -n shop": true, "--run-dir /x run": true, "--run-dir=/x --color never run": true, "--color never status": false,
		"observe": false, "": false, "workload run": false, "--run-dir run status": false,
	} {
		if got := startsWorkload(strings.Fields(args)); got != want {
			t.Errorf("%q: %v", args, got)
		}
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"/reviews/7?x=→": "/reviews/7?x=→", "": "", "a\x1b[31mb": `a\x1b[31mb`, "a\nb\tc": `a\nb\tc`, "\xff": `\xff`, "\u202e": `\u202e`, "\ufffd": `�`, "\u200b": `\u200b`,
	} {
		if got := printable(in); got != want {
			t.Errorf("printable(%q) = %q, want %q", in, got, want)
		}
	}
}

// TestTableIsPrintable: whatever a cell is made of, a terminal only shows it.
func TestTableIsPrintable(t *testing.T) {
	table := &table{header: []string{"A", "B"}}
	table.add("x\x1b]0;title\a", cell{"y\rz", red})
	table.add("→", "")
	var out bytes.Buffer
	if err := table.write(&out, false); err != nil {
		t.Fatal(err)
	}
	if want := "A                B\n" + `x\x1b]0;title\a  y\rz` + "\n→                -\n"; out.String() != want {
		t.Errorf("got\n%q, want\n%q", out.String(), want)
	}
}

func TestAmounts(t *testing.T) {
	for n, want := range map[uint64]string{0: "0B", 999: "999B", 1000: "1.0kB", 999_949: "999.9kB", 999_951: "1.0MB", 12_345_678: "12.3MB", 1 << 63: "9.2EB"} {
		if got := bytesWord(n); got != want {
			t.Errorf("bytesWord(%d) = %s, want %s", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{0: "0µs", 120 * time.Microsecond: "120µs", 3200 * time.Microsecond: "3.2ms", 1250 * time.Millisecond: "1.25s"} {
		if got := durationWord(d); got != want {
			t.Errorf("durationWord(%d) = %s, want %s", d, got, want)
		}
	}
	for d, want := range map[time.Duration]string{0: "0s", -time.Hour: "0s", 75 * time.Second: "1m15s", 90 * time.Minute: "1h30m", 50 * time.Hour: "2d2h"} {
		if got := age(now.Add(-d), now); got != want {
			t.Errorf("age %v = %s, want %s", d, got, want)
		}
	}
}

// TestUnknownWords: a flow of a newer agent is shown, not refused.
func TestUnknownWords(t *testing.T) {
	var f flow.Flow
	if err := json.Unmarshal([]byte(`{"time":"2026-03-04T20:31:07Z","type":"quic","verdict":"audited","reason":"moon-phase"}`), &f); err != nil {
		t.Fatal(err)
	}
	got := string((&flowLines{now: now}).append(nil, &f))
	if want := "20:31:07.000 unknown → unknown unknown unknown\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
