package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-mesh/sluice/lab"
)

// step is one thing that the node is asked to do. run returns what a reader
// should know of it, or why it was not as it should be.
type step struct {
	chapter, title string
	run            func(context.Context, *shop) (string, error)
}

const (
	chapterUp       = "Workloads and names"
	chapterRoutes   = "Routes between workloads (steered at the socket into the node proxy)"
	chapterGateway  = "From outside, through the Gateway"
	chapterKernel   = "Services without routes (the kernel alone)"
	chapterRefusals = "Refusals say why"
	chapterChange   = "Change while requests run"
	chapterSeen     = "What was seen"
	chapterRestart  = "Parts that die"
)

var story = []step{
	{chapterUp, "every program serves", everyProgramServes},
	{chapterUp, "names", names},
	{chapterRoutes, "90/10 split", split},
	{chapterRoutes, "header match", headerMatch},
	{chapterRoutes, "path rewrite", rewrite},
	{chapterRoutes, "redirect", redirect},
	{chapterRoutes, "retry over a failing backend", retry},
	{chapterRoutes, "timeout", timeout},
	{chapterRoutes, "gRPC balanced per call", grpcPerCall},
	{chapterGateway, "HTTPS", gatewayHTTPS},
	{chapterGateway, "HTTP", gatewayHTTP},
	{chapterKernel, "TCP", kernelTCP},
	{chapterKernel, "UDP", kernelUDP},
	{chapterKernel, "endpoints listed by hand", bank},
	{chapterRefusals, "a service that nobody serves", refused},
	{chapterRefusals, "a workload that dials the proxy itself", capturePort},
	{chapterRefusals, "a host that no route serves", noRoute},
	{chapterChange, "a route edited on disk", editRoute},
	{chapterChange, "a broken file", brokenFile},
	{chapterSeen, "flows", flows},
	{chapterSeen, "explain", explain},
	{chapterSeen, "metrics", metrics},
	{chapterRestart, "the agent killed", agentKilled},
	{chapterRestart, "the proxy killed", proxyKilled},
}

func everyProgramServes(ctx context.Context, s *shop) (string, error) {
	for _, url := range []string{"http://reviews-v1/", "http://reviews-v2/", "http://stock/", "http://archive:80/"} {
		// The archive answers late on purpose: any status but an error will do.
		_, t, err := s.buy(ctx, "get", "--wait=10s", url)
		if err != nil {
			return "", err
		}
		if t.Status["error"] > 0 {
			return "", fmt.Errorf("%s: %v", url, t.Errors)
		}
	}
	if _, t, err := s.buy(ctx, "grpc", "--wait=10s", "catalog:9090"); err != nil {
		return "", err
	} else if err := t.all("OK"); err != nil {
		return "", fmt.Errorf("catalog: %w", err)
	}
	text, err := s.Sluice(ctx, "workload", "list", "-o", "json")
	if err != nil {
		return "", err
	}
	var list []struct {
		Ready, Local bool
	}
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return "", fmt.Errorf("sluice workload list printed %q: %w", text, err)
	}
	for _, w := range list {
		if !w.Ready || !w.Local {
			return "", fmt.Errorf("a workload is not ready:\n%s", text)
		}
	}
	return fmt.Sprintf("%d workloads, each with addresses, a cgroup and a network namespace", len(list)), nil
}

func names(ctx context.Context, s *shop) (string, error) {
	hosts := []string{"reviews", "reviews.bookshop", "reviews.bookshop.svc.cluster.local"}
	for _, host := range hosts {
		_, t, err := s.buy(ctx, "get", "http://"+host+"/")
		if err != nil {
			return "", err
		}
		if err := t.all("200"); err != nil {
			return "", fmt.Errorf("%s: %w", host, err)
		}
	}
	return strings.Join(hosts, ", ") + " resolve inside a workload", nil
}

func split(ctx context.Context, s *shop) (string, error) {
	const n = 1000
	_, t, err := s.buy(ctx, "get", "-n", strconv.Itoa(n), "http://reviews/reviews/1")
	if err != nil {
		return "", err
	}
	if err := t.all("200"); err != nil {
		return "", err
	}
	v1, v2 := t.ServedBy["reviews-v1"], t.ServedBy["reviews-v2"]
	// Six standard deviations of a fair draw: sqrt(1000 × 0.1 × 0.9) = 9.5.
	if v1+v2 != n || v2 < 43 || v2 > 157 {
		return "", fmt.Errorf("of %d requests v1 got %d and v2 %d", n, v1, v2)
	}
	return fmt.Sprintf("of %d requests v1 got %.1f %%, v2 %.1f %%", n, 100*float64(v1)/n, 100*float64(v2)/n), nil
}

func headerMatch(ctx context.Context, s *shop) (string, error) {
	_, t, err := s.buy(ctx, "get", "-n", "50", "-H", "x-canary: yes", "http://reviews/reviews/1")
	if err != nil {
		return "", err
	}
	if t.all("200") != nil || t.ServedBy["reviews-v2"] != 50 {
		return "", fmt.Errorf("served by %v, status %v", t.ServedBy, t.Status)
	}
	return "50 of 50 requests with x-canary: yes went to v2", nil
}

func rewrite(ctx context.Context, s *shop) (string, error) {
	_, t, err := s.buy(ctx, "get", "http://reviews/v0/reviews/7?full=1")
	if err != nil {
		return "", err
	}
	if !strings.HasPrefix(t.Last, "reviews-v1 GET /reviews/7?full=1 ") {
		return "", fmt.Errorf("the server saw %q", t.Last)
	}
	return "/v0/reviews/7?full=1 reached the server as /reviews/7?full=1", nil
}

func redirect(ctx context.Context, s *shop) (string, error) {
	_, t, err := s.buy(ctx, "get", "http://reviews/old")
	if err != nil {
		return "", err
	}
	if t.all("301") != nil || t.Location != "http://reviews/reviews" {
		return "", fmt.Errorf("status %v, location %q", t.Status, t.Location)
	}
	return "/old is 301 to " + t.Location, nil
}

func retry(ctx context.Context, s *shop) (string, error) {
	const n = 100
	name, t, err := s.buy(ctx, "get", "-n", strconv.Itoa(n), "http://stock/stock")
	if err != nil {
		return "", err
	}
	if err := t.all("200"); err != nil {
		return "", err
	}
	records, err := s.flows(ctx, func(r []record) bool { return len(r) >= n }, "--workload", "bookshop/"+name, "--type", "http", "--last", "200")
	if err != nil {
		return "", err
	}
	tries := 0
	for _, f := range records {
		tries += f.HTTP.Tries
	}
	if tries <= n {
		return "", fmt.Errorf("%d requests took %d tries: the failing server was never tried", n, tries)
	}
	return fmt.Sprintf("%d requests got 200 in %d tries, one of the two servers answers 503 only", n, tries), nil
}

func timeout(ctx context.Context, s *shop) (string, error) {
	_, t, err := s.buy(ctx, "get", "http://archive/")
	if err != nil {
		return "", err
	}
	if t.all("504") != nil || t.Headers["x-sluice-reason"] != "request-timeout" {
		return "", fmt.Errorf("status %v, reason %q", t.Status, t.Headers["x-sluice-reason"])
	}
	return "a server that takes 10 s is 504 after the route's 200 ms, x-sluice-reason: request-timeout", nil
}

func grpcPerCall(ctx context.Context, s *shop) (string, error) {
	_, t, err := s.buy(ctx, "grpc", "-n", "200", "catalog:9090")
	if err != nil {
		return "", err
	}
	if err := t.all("OK"); err != nil {
		return "", err
	}
	a, b := t.ServedBy["catalog-a"], t.ServedBy["catalog-b"]
	if a+b != 200 || a < 50 || b < 50 {
		return "", fmt.Errorf("catalog-a served %d, catalog-b %d of 200 calls", a, b)
	}
	return fmt.Sprintf("200 calls over one connection: catalog-a %d, catalog-b %d", a, b), nil
}

// outsideGet sends requests from the outside world to the Gateway.
func (s *shop) outsideGet(ctx context.Context, args ...string) (*tally, error) {
	out, err := s.Command(ctx, lab.Outside, "app", append([]string{"get", "--ca", s.ca()}, args...)...).Output()
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, out.Stderr)
	}
	return parseTally(out.Stdout)
}

func gatewayHTTPS(ctx context.Context, s *shop) (string, error) {
	t, err := s.outsideGet(ctx, "-n", "20", "--resolve", gatewayAddress+":443", "https://shop.example/reviews/1")
	if err != nil {
		return "", err
	}
	if err := t.all("200"); err != nil {
		return "", err
	}
	if t.Headers["proto"] != "HTTP/2.0" || !strings.Contains(t.Last, "for=203.0.113.2") {
		return "", fmt.Errorf("protocol %q, the server saw %q", t.Headers["proto"], t.Last)
	}
	return "https://shop.example/reviews/1 is 200 over HTTP/2, the server knows the client's address by x-forwarded-for", nil
}

func gatewayHTTP(ctx context.Context, s *shop) (string, error) {
	t, err := s.outsideGet(ctx, "-n", "20", "--resolve", gatewayAddress+":80", "http://shop.example/stock/1")
	if err != nil {
		return "", err
	}
	if err := t.all("200"); err != nil {
		return "", err
	}
	if t.Headers["cache-control"] != "no-store" {
		return "", fmt.Errorf("the response lacks the route's header: %v", t.Headers)
	}
	return "http://shop.example/stock/1 is 200 with the route's cache-control: no-store", nil
}

// untouched checks that the kernel translated a client's connection and that the
// proxy has no record of it.
func (s *shop) untouched(ctx context.Context, name, protocol string) (vip netip.AddrPort, err error) {
	translated := func(f record) bool {
		return f.Type == "socket" && f.Verdict == "translated" && f.Protocol == protocol
	}
	records, err := s.flows(ctx, func(r []record) bool { return slices.ContainsFunc(r, translated) }, "--workload", "bookshop/"+name, "--last", "100")
	if err != nil {
		return vip, err
	}
	for _, f := range records {
		switch {
		case f.Type == "tcp" || f.Type == "http":
			return vip, fmt.Errorf("the proxy carried it: %+v", f)
		case translated(f):
			vip = f.Original
		}
	}
	if !vip.IsValid() {
		return vip, fmt.Errorf("no flow says that the kernel translated it (%d flows)", len(records))
	}
	return vip, nil
}

func kernelTCP(ctx context.Context, s *shop) (string, error) {
	name, t, err := s.buy(ctx, "tcp", "-n", "3", "--wait=10s", "ledger:7000", "one book")
	if err != nil {
		return "", err
	}
	if t.all("ok") != nil || !strings.HasPrefix(t.Last, "ledger one book peer="+hostOf(t.Local)) {
		return "", fmt.Errorf("status %v, last %q, from %s", t.Status, t.Last, t.Local)
	}
	vip, err := s.untouched(ctx, name, "TCP")
	if err != nil {
		return "", err
	}
	if t.Remote != vip.String() {
		return "", fmt.Errorf("the client believes it speaks with %s, not with %s", t.Remote, vip)
	}
	return fmt.Sprintf("ledger:7000 answers; the client sees %s, the server sees the client itself, no flow of the proxy", vip), nil
}

func kernelUDP(ctx context.Context, s *shop) (string, error) {
	name, t, err := s.buy(ctx, "udp", "-n", "3", "--wait=10s", "clock:7001", "what time is it")
	if err != nil {
		return "", err
	}
	if t.all("ok") != nil || !strings.HasPrefix(t.Last, "clock what time is it peer="+hostOf(t.Local)) {
		return "", fmt.Errorf("status %v, last %q, from %s", t.Status, t.Last, t.Local)
	}
	vip, err := s.untouched(ctx, name, "UDP")
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("clock:7001 answers from %s, no flow of the proxy", vip), nil
}

func hostOf(addrPort string) string {
	if a, err := netip.ParseAddrPort(addrPort); err == nil {
		return netip.AddrPortFrom(a.Addr(), 0).Addr().String()
	}
	return addrPort
}

func bank(ctx context.Context, s *shop) (string, error) {
	_, t, err := s.buy(ctx, "tcp", "--wait=10s", "bank:9000", "balance")
	if err != nil {
		return "", err
	}
	if t.all("ok") != nil || !strings.HasPrefix(t.Last, "bank balance ") {
		return "", fmt.Errorf("status %v, errors %v, last %q", t.Status, t.Errors, t.Last)
	}
	return "bank:9000 is an address outside the mesh, from an EndpointSlice", nil
}

func refused(ctx context.Context, s *shop) (string, error) {
	name, t, err := s.buy(ctx, "tcp", "closed:80", "anybody")
	if err != nil {
		return "", err
	}
	if t.Errors["connection refused"] != 1 {
		return "", fmt.Errorf("errors %v, status %v", t.Errors, t.Status)
	}
	return s.dropped(ctx, name, "no-endpoint", "connection refused at once")
}

func capturePort(ctx context.Context, s *shop) (string, error) {
	name, t, err := s.buy(ctx, "tcp", "--self", ":15001", "hello")
	if err != nil {
		return "", err
	}
	if t.Status["error"] != 1 {
		return "", fmt.Errorf("status %v, last %q", t.Status, t.Last)
	}
	return s.dropped(ctx, name, "capture-port", "its own port 15001 is refused")
}

// dropped checks that a client's refusal is on record with its reason.
func (s *shop) dropped(ctx context.Context, name, reason, said string) (string, error) {
	because := func(f record) bool { return f.Reason == reason }
	records, err := s.flows(ctx, func(r []record) bool { return slices.ContainsFunc(r, because) }, "--workload", "bookshop/"+name, "--verdict", "dropped", "--last", "10")
	if err != nil {
		return "", err
	}
	if slices.ContainsFunc(records, because) {
		return said + ", and the flow says " + reason, nil
	}
	return "", fmt.Errorf("no flow with reason %s among %+v", reason, records)
}

func noRoute(ctx context.Context, s *shop) (string, error) {
	t, err := s.outsideGet(ctx, "--resolve", gatewayAddress+":80", "http://shop.example/nowhere")
	if err != nil {
		return "", err
	}
	if t.all("404") != nil || t.Headers["x-sluice-reason"] != "no-route" {
		return "", fmt.Errorf("status %v, reason %q", t.Status, t.Headers["x-sluice-reason"])
	}
	return "404 with x-sluice-reason: no-route", nil
}

// requests are a client that goes on while something else happens.
type requests struct {
	*lab.Process
	stdout bytes.Buffer
}

// running starts a client and returns when its first request was answered.
func running(cmd *lab.Command) (*requests, error) {
	r := &requests{}
	first := newWaiter("requests are running")
	cmd.Stdout, cmd.Stderr = &r.stdout, first
	var err error
	if r.Process, err = cmd.Start(); err != nil {
		return nil, err
	}
	select {
	case <-first.said:
		return r, nil
	case <-r.Done:
		return nil, fmt.Errorf("the client ended before its first answer: %w: %s", r.Err, first.text)
	}
}

// waiter is a writer that waits for a word.
type waiter struct {
	word string
	said chan struct{}
	text string
}

func newWaiter(word string) *waiter { return &waiter{word: word, said: make(chan struct{})} }

func (w *waiter) Write(b []byte) (int, error) {
	before := strings.Contains(w.text, w.word)
	w.text += string(b)
	if !before && strings.Contains(w.text, w.word) {
		close(w.said)
	}
	return len(b), nil
}

// tally waits for the client's end.
func (r *requests) tally() (*tally, error) {
	<-r.Done
	if r.Err != nil {
		return nil, r.Err
	}
	return parseTally(r.stdout.String())
}

func editRoute(ctx context.Context, s *shop) (string, error) {
	_, cmd := s.shopper(ctx, "get", "--for=3s", "http://reviews/reviews/1")
	requests, err := running(cmd)
	if err != nil {
		return "", err
	}
	defer requests.Stop()
	file := filepath.Join(s.ConfigDir(), "10-reviews.yaml")
	text, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	edited := strings.NewReplacer("weight: 90", "weight: 0", "weight: 10", "weight: 100").Replace(string(text))
	if err := os.WriteFile(file, []byte(edited), 0o644); err != nil {
		return "", err
	}
	during, err := requests.tally()
	if err != nil {
		return "", err
	}
	if err := during.all("200"); err != nil {
		return "", err
	}
	_, after, err := s.buy(ctx, "get", "-n", "100", "http://reviews/reviews/1")
	if err != nil {
		return "", err
	}
	if after.ServedBy["reviews-v2"] != 100 {
		return "", fmt.Errorf("after the edit: served by %v", after.ServedBy)
	}
	if during.ServedBy["reviews-v1"] == 0 || during.ServedBy["reviews-v2"] < during.Requests/3 {
		return "", fmt.Errorf("the edit was not seen while requests ran: %v", during.ServedBy)
	}
	return fmt.Sprintf("%d requests while the weights became 0/100, none failed; after it 100 of 100 go to v2", during.Requests), nil
}

func brokenFile(ctx context.Context, s *shop) (string, error) {
	file := filepath.Join(s.ConfigDir(), "10-reviews.yaml")
	text, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	defer os.WriteFile(file, text, 0o644)
	broken := strings.Replace(string(text), "rules:", "rulez:", 1)
	if err := os.WriteFile(file, []byte(broken), 0o644); err != nil {
		return "", err
	}
	var list string
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		// The exit status says that something is wrong, which is what is wanted.
		list, _ = s.Sluice(ctx, "status", "-o", "json")
		if strings.Contains(list, "rulez") {
			break
		}
		if time.Now().After(deadline) {
			return "", fmt.Errorf("sluice status does not mention the wrong field:\n%s", list)
		}
	}
	_, t, err := s.buy(ctx, "get", "-n", "20", "http://reviews/reviews/1")
	if err != nil {
		return "", err
	}
	if err := t.all("200"); err != nil {
		return "", err
	}
	return "sluice status names the file, the object and the field \"rulez\"; the last good route goes on", nil
}

func agentKilled(ctx context.Context, s *shop) (string, error) {
	_, cmd := s.shopper(ctx, "get", "--for=3s", "--new-connections", "http://reviews/reviews/1")
	requests, err := running(cmd)
	if err != nil {
		return "", err
	}
	defer requests.Stop()
	pid, err := s.agentPID(ctx)
	if err != nil {
		return "", err
	}
	agent, err := os.FindProcess(pid)
	if err != nil {
		return "", err
	}
	if err := agent.Kill(); err != nil {
		return "", err
	}
	t, err := requests.tally()
	if err != nil {
		return "", err
	}
	if err := t.all("200"); err != nil {
		return "", err
	}
	if err := s.WaitReady(ctx); err != nil {
		return "", err
	}
	again, err := s.agentPID(ctx)
	if err != nil {
		return "", err
	}
	if again == pid {
		return "", fmt.Errorf("the agent is still process %d", again)
	}
	return fmt.Sprintf("%d requests, each on a new connection, while it was killed and came back: none failed", t.Requests), nil
}

func (s *shop) agentPID(ctx context.Context) (int, error) { return s.pid(ctx, "agent") }

// pid returns the number of one of the node's processes.
func (s *shop) pid(ctx context.Context, process string) (int, error) {
	text, err := s.Sluice(ctx, "status", "-o", "json")
	if err != nil {
		return 0, err
	}
	var status struct {
		Processes []struct {
			Process string
			Status  struct{ Component struct{ PID int } }
		}
	}
	if err := json.Unmarshal([]byte(text), &status); err != nil {
		return 0, err
	}
	for _, p := range status.Processes {
		if p.Process == process && p.Status.Component.PID > 0 {
			return p.Status.Component.PID, nil
		}
	}
	return 0, fmt.Errorf("sluice status lists no %s: %s", process, text)
}

// proxyKilled checks that what needs the proxy is refused, never passed by, while
// there is none, that the kernel's own work goes on, and that it comes back.
func proxyKilled(ctx context.Context, s *shop) (string, error) {
	_, cmd := s.shopper(ctx, "get", "--for=4s", "--new-connections", "http://reviews/reviews/1")
	requests, err := running(cmd)
	if err != nil {
		return "", err
	}
	defer requests.Stop()
	pid, err := s.pid(ctx, "proxy")
	if err != nil {
		return "", err
	}
	proxy, err := os.FindProcess(pid)
	if err != nil {
		return "", err
	}
	if err := proxy.Kill(); err != nil {
		return "", err
	}
	t, err := requests.tally()
	if err != nil {
		return "", err
	}
	if err := s.WaitReady(ctx); err != nil {
		return "", err
	}
	if t.Status["200"]+t.Status["error"] != t.Requests {
		return "", fmt.Errorf("by status %v", t.Status)
	}
	_, after, err := s.buy(ctx, "get", "-n", "20", "http://reviews/reviews/1")
	if err != nil {
		return "", err
	}
	if err := after.all("200"); err != nil {
		return "", fmt.Errorf("after it came back: %w", err)
	}
	return fmt.Sprintf("%d requests, %d failed while there was none, none passed it by; it is back", t.Requests, t.Status["error"]), nil
}

// record is what the demo reads of a flow.
type record struct {
	Type, Verdict, Reason, Protocol string
	Original                        netip.AddrPort
	HTTP                            struct {
		Method, Path, Route string
		Status, Tries       int
	}
}

// flows returns the flows that `sluice observe` shows, once enough says that they
// are what is waited for: a flow is on record a moment after what it is of.
func (s *shop) flows(ctx context.Context, enough func([]record) bool, args ...string) ([]record, error) {
	deadline := time.Now().Add(5 * time.Second)
	for {
		// An exit status of 3 says that there is none.
		text, err := s.Sluice(ctx, append([]string{"observe", "-o", "jsonl"}, args...)...)
		var exit *exec.ExitError
		if err != nil && !(errors.As(err, &exit) && exit.ExitCode() == 3) {
			return nil, err
		}
		var records []record
		for line := range strings.Lines(text) {
			var f record
			if err := json.Unmarshal([]byte(line), &f); err != nil {
				return nil, fmt.Errorf("sluice observe printed %q: %w", line, err)
			}
			records = append(records, f)
		}
		if enough(records) || time.Now().After(deadline) {
			return records, nil
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func flows(ctx context.Context, s *shop) (string, error) {
	records, err := s.flows(ctx, func(r []record) bool { return len(r) > 0 }, "--http-status", "504", "--last", "5")
	if err != nil {
		return "", err
	}
	if len(records) == 0 || records[0].Reason != "request-timeout" {
		return "", fmt.Errorf("the timeout is not among the flows: %+v", records)
	}
	text, err := s.Sluice(ctx, "observe", "--last", "8")
	if err != nil {
		return "", err
	}
	return "sluice observe --last 8\n" + indent(text), nil
}

func explain(ctx context.Context, s *shop) (string, error) {
	text, err := s.Sluice(ctx, "route", "explain", "GET", "http://reviews.bookshop/v0/reviews/7", "--from", "bookshop/catalog-a")
	if err != nil {
		return "", err
	}
	if !strings.Contains(text, "HTTPRoute/bookshop/reviews") {
		return "", fmt.Errorf("it does not name the route:\n%s", text)
	}
	return "sluice route explain GET http://reviews.bookshop/v0/reviews/7\n" + indent(text), nil
}

func metrics(ctx context.Context, s *shop) (string, error) {
	out, err := s.Command(ctx, lab.Node, "app", "get", "--raw", "http://127.0.0.1:9964/metrics").Output()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out.Stderr)
	}
	total := 0.0
	var shown []string
	for line := range strings.Lines(out.Stdout) {
		if !strings.HasPrefix(line, "sluice_proxy_requests_total{") {
			continue
		}
		_, value, _ := strings.Cut(strings.TrimSpace(line), "} ")
		n, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return "", fmt.Errorf("metric %q: %w", line, err)
		}
		total += n
		if len(shown) < 5 {
			shown = append(shown, strings.TrimSpace(line))
		}
	}
	if total < 1500 {
		return "", fmt.Errorf("the proxy counted %.0f requests, fewer than were sent", total)
	}
	return fmt.Sprintf("the proxy counted %.0f requests, such as\n%s", total, indent(strings.Join(shown, "\n"))), nil
}

func indent(text string) string {
	return "      " + strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n      ")
}
