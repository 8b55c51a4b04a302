package lab_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// silent is a port that workloads declare and nobody listens on.
const silent = 7100

// TestInbound: connections to a workload that asks for it go by way of the proxy, which passes them on
// from the client's address and says what they were.
func TestInbound(t *testing.T) {
	before, err := links()
	if err != nil {
		t.Fatal(err)
	}
	n, err := start(t.Context(), "test-inbound")
	if n != nil {
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("The node's last words:\n%s", n.LogTail(60))
			}
			if err := n.Down(); err != nil {
				t.Error(err)
			}
			if err := goneWithout(before, "test-inbound"); err != nil {
				t.Errorf("left after Down: %v", err)
			}
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	n.takes(t, "seen", "capture")
	n.takes(t, "strict", "require")
	for _, six := range []bool{false, true} {
		family := map[bool]string{false: "ip4", true: "ip6"}[six]
		t.Run("journeys "+family, func(t *testing.T) { inboundJourneys(t, n, "seen", six) })
	}
	t.Run("annotation", func(t *testing.T) { inboundAnnotation(t, n) })
	t.Run("agent killed", func(t *testing.T) { inboundAgentKilled(t, n) })
	t.Run("no proxy", func(t *testing.T) { inboundNoProxy(t, n) })
}

// takes starts a workload whose inbound connections are to be taken, and waits until it serves.
func (n *node) takes(t *testing.T, name, mode string) {
	t.Helper()
	flags := []string{"--annotation", "sluice.dev/inbound=" + mode, "--user", "65534:65534"}
	for _, port := range []string{"8080", "9090", "7000", "7001/udp", "7002", fmt.Sprint(silent)} {
		flags = append(flags, "--port", port)
	}
	if _, err := n.Workload(n.ctx, "shop", name, flags, peerName, "serve", name).Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		var list []struct {
			Name      string
			Addresses []netip.Addr
		}
		n.read(t, &list, "workload", "list", "-n", "shop")
		for _, w := range list {
			if w.Name == "shop/"+name {
				inboundAddresses[name] = w.Addresses
				return n.answers(call{Do: "http", URL: "http://" + n.at(t, name, false, 8080) + "/ready"}, 200)
			}
		}
		return fmt.Errorf("no workload %s: %+v", name, list)
	})
}

// inboundAddresses are those of the workloads that takes started.
var inboundAddresses = map[string][]netip.Addr{}

// at returns a workload's address and port.
func (n *node) at(t *testing.T, name string, six bool, port uint16) string {
	t.Helper()
	for _, a := range inboundAddresses[name] {
		if a.Is6() == six {
			return netip.AddrPortFrom(a, port).String()
		}
	}
	t.Fatalf("%s has no such address", name)
	return ""
}

func (n *node) own(t *testing.T, six bool) string {
	return n.client.must(t, call{Do: "own", Network: map[bool]string{false: "ip4", true: "ip6"}[six]}).Text
}

// inboundOf says whether a flow is of a workload's own port by way of the proxy.
func inboundOf(r record, kind, to string) bool {
	return r.Type == kind && r.Destination.Address.String() == to && r.Source.Workload == "shop/client"
}

func inboundJourneys(t *testing.T, n *node, name string, six bool) {
	own := n.own(t, six)
	peer := " peer=" + strings.TrimSuffix(netip.AddrPortFrom(netip.MustParseAddr(own), 0).String(), "0")
	path := fmt.Sprintf("/inbound-%t", six)

	http := n.at(t, name, six, 8080)
	a := n.client.must(t, call{Do: "http", URL: "http://" + http + path})
	// Nothing of the request is changed.
	if a.Status != 200 || !strings.HasPrefix(a.Text, name+" GET "+path+" host="+http+peer) || !strings.HasSuffix(a.Text, " for= proto=") {
		t.Errorf("HTTP: %d %q, want the server to see %s", a.Status, a.Text, own)
	}
	r := n.flow(t, func(r record) bool { return inboundOf(r, "http", http) && r.HTTP.Path == path }, "--from-workload", "shop/client")
	if r.HTTP.Status != 200 || r.HTTP.Proto != "HTTP/1.1" || r.Destination.Workload != "shop/"+name || r.Verdict != "forwarded" {
		t.Errorf("flow %+v", r)
	}

	grpc := n.at(t, name, six, 9090)
	if a := n.client.must(t, call{Do: "grpc", Addr: grpc}); !strings.HasPrefix(a.Text, name+"; "+name+" one; ") {
		t.Errorf("gRPC: %q", a.Text)
	}
	n.flow(t, func(r record) bool {
		return inboundOf(r, "http", grpc) && r.HTTP.Path == "/lab.Echo/Chat" && r.HTTP.Proto == "HTTP/2"
	}, "--from-workload", "shop/client")

	lines := n.at(t, name, six, 7000)
	if a := n.client.must(t, call{Do: "bytes", Addr: lines, Shut: true, Message: "hello\n"}); !strings.HasPrefix(a.Text, name+" hello"+peer) || !strings.HasSuffix(a.Text, "end after 1\n") {
		t.Errorf("TCP: %q", a.Text)
	}
	n.flow(t, func(r record) bool { return inboundOf(r, "tcp", lines) && r.Verdict == "forwarded" }, "--from-workload", "shop/client")

	banner := n.at(t, name, six, 7002)
	if a := n.client.must(t, call{Do: "bytes", Addr: banner, Listen: true, Shut: true, Message: "hello\n"}); !strings.HasPrefix(a.Text, "220 "+name+"\n"+name+" hello"+peer) {
		t.Errorf("a server that speaks first: %q", a.Text)
	}

	// The server does not listen.
	nobody := n.at(t, name, six, silent)
	if a := n.client.must(t, call{Do: "http", URL: "http://" + nobody + path}); a.Status != 503 || a.Header.Get("X-Sluice-Reason") != "connect-failed" {
		t.Errorf("HTTP to a server that is closed: %d %v", a.Status, a.Header)
	}
	n.flow(t, func(r record) bool { return inboundOf(r, "http", nobody) && r.Reason == "connect-failed" }, "--from-workload", "shop/client")
	if a, err := n.client.try(call{Do: "bytes", Addr: nobody, Shut: true, Message: "hello\n"}); err == nil && a.Error == "" && a.Text != "" {
		t.Errorf("TCP to a server that is closed: %+v", a)
	}
	n.flow(t, func(r record) bool { return inboundOf(r, "tcp", nobody) && r.Reason == "connect-failed" }, "--from-workload", "shop/client")

	// Clients that are no workloads are taken, too.
	if err := answers(n.local, call{Do: "http", URL: "http://" + http + path + "-local"}, 200); err != nil {
		t.Error(err)
	}
	n.flow(t, func(r record) bool {
		return r.Type == "http" && r.HTTP.Path == path+"-local" && r.Source.Workload == ""
	}, "--to-workload", "shop/"+name)
}

// inboundAnnotation: what cannot be is refused, and said.
func inboundAnnotation(t *testing.T, n *node) {
	for _, test := range []struct{ value, port, want string }{
		{"maybe", "8080", "want capture or require"}, {"capture", "7001/udp", "declares no TCP port"},
	} {
		out, err := n.Workload(t.Context(), "shop", "wrong", []string{"--annotation", "sluice.dev/inbound=" + test.value, "--port", test.port}, peerName, "serve", "wrong").Output()
		if err == nil || !strings.Contains(out.Stderr, "sluice.dev/inbound") || !strings.Contains(out.Stderr, test.want) {
			t.Errorf("inbound=%s with port %s: %v: %s", test.value, test.port, err, out.Stderr)
		}
	}
}

// inboundAgentKilled: connections are taken on, before and after another agent is there.
func inboundAgentKilled(t *testing.T, n *node) {
	lines := n.at(t, "strict", false, 7000)
	n.client.must(t, call{Do: "open", Name: "inbound", Addr: lines})
	t.Cleanup(func() { n.client.do(t, call{Do: "close", Name: "inbound"}) })
	alive := func(word string) {
		t.Helper()
		if a := n.client.do(t, call{Do: "say", Name: "inbound", Message: word}); !strings.HasPrefix(a.Text, "strict "+word+" peer=") {
			t.Errorf("a connection from before: %q %s", a.Text, a.Error)
		}
	}
	alive("before")
	agent := n.pid(t, "agent")
	n.signal(t, agent, unix.SIGKILL)
	for range 10 {
		inboundWorks(t, n, "strict")
	}
	alive("during")
	n.replaced(t, "agent", agent)
	inboundWorks(t, n, "strict")
	alive("after")
	http := n.at(t, "strict", false, 8080)
	n.client.must(t, call{Do: "http", URL: "http://" + http + "/taken-over"})
	n.flow(t, func(r record) bool { return inboundOf(r, "http", http) && r.HTTP.Path == "/taken-over" }, "--from-workload", "shop/client")
}

func inboundWorks(t *testing.T, n *node, name string) {
	t.Helper()
	for _, six := range []bool{false, true} {
		if err := n.answers(call{Do: "http", URL: "http://" + n.at(t, name, six, 8080) + "/works"}, 200); err != nil {
			t.Error(err)
		}
	}
}

// inboundNoProxy: while no proxy serves, a workload that asked to be seen takes its connections itself,
// and one that requires the proxy gets none.
func inboundNoProxy(t *testing.T, n *node) {
	proxy := n.pid(t, "proxy")
	n.signal(t, proxy, unix.SIGSTOP)
	defer n.signal(t, proxy, unix.SIGCONT)
	for _, six := range []bool{false, true} {
		strict := n.at(t, "strict", six, 8080)
		eventually(t, func() error {
			a, err := n.client.try(call{Do: "connect", Addr: strict})
			if err == nil && a.Error != "ECONNREFUSED" {
				err = fmt.Errorf("dialling a workload that requires the proxy: %+v", a)
			}
			return err
		})
		n.flow(t, func(r record) bool {
			return r.Reason == "proxy-unavailable" && r.Destination.Address.String() == strict && r.Verdict == "dropped"
		}, "--reason", "proxy-unavailable")
		lines := n.at(t, "seen", six, 7000)
		if a := n.client.must(t, call{Do: "bytes", Addr: lines, Shut: true, Message: "hello\n"}); !strings.HasPrefix(a.Text, "seen hello peer=") {
			t.Errorf("without a proxy: %q", a.Text)
		}
	}
	n.signal(t, proxy, unix.SIGCONT)
	eventually(t, func() error {
		return n.answers(call{Do: "http", URL: "http://" + n.at(t, "strict", false, 8080) + "/back"}, 200)
	})
}
