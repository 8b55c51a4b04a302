package lab_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFaults kills parts of a node of its own. Each subtest leaves it whole.
func TestFaults(t *testing.T) {
	before, err := links()
	if err != nil {
		t.Fatal(err)
	}
	n, err := start(t.Context(), "test-faults")
	if n != nil {
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("The node's last words:\n%s", n.LogTail(60))
			}
			if err := n.Down(); err != nil {
				t.Error(err)
			}
			if err := goneWithout(before, "test-faults"); err != nil {
				t.Errorf("left after Down: %v", err)
			}
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		run  func(*testing.T, *node)
	}{
		{"agent killed", agentKilled},
		{"agent stopped", agentStopped},
		{"proxy killed", proxyKilled},
		{"proxy stopped", proxyStopped},
		{"control plane away", controlPlaneAway},
		{"workload names its like", sameName},
	} {
		if !t.Run(test.name, func(t *testing.T) {
			test.run(t, n)
			if err := n.WaitReady(t.Context()); err != nil {
				t.Error(err)
			}
			n.working(t)
		}) {
			return // what comes next needs a whole node
		}
	}
}

// working checks every way to the server once.
func (n *node) working(t *testing.T) {
	t.Helper()
	for _, url := range []string{"http://web/", "http://plain/"} {
		if err := n.answers(call{Do: "http", URL: url}, 200); err != nil {
			t.Error(err)
		}
	}
	for _, q := range []call{
		{Do: "http", URL: "http://www.example/web", Resolve: edge4 + ":80"},
		{Do: "http", URL: "https://www.example/web", Resolve: edge4 + ":443", CA: n.caPEM(t, "www")},
	} {
		if err := answers(n.outside, q, 200); err != nil {
			t.Error(err)
		}
	}
}

// hold opens long-lived connections, steered and not, and returns what checks that
// they live and closes them.
func (n *node) hold(t *testing.T, services ...string) (alive func(word string)) {
	t.Helper()
	for _, s := range services {
		n.client.must(t, call{Do: "open", Name: s, Addr: s + ":7000"})
		t.Cleanup(func() { n.client.do(t, call{Do: "close", Name: s}) })
	}
	return func(word string) {
		t.Helper()
		for _, s := range services {
			if a := n.client.do(t, call{Do: "say", Name: s, Message: word}); !strings.HasPrefix(a.Text, "web-a "+word+" peer=") {
				t.Errorf("a connection to %s from before: %q %s", s, a.Text, a.Error)
			}
		}
	}
}

func (n *node) signal(t *testing.T, pid int, sig unix.Signal) {
	t.Helper()
	if err := unix.Kill(pid, sig); err != nil {
		t.Fatal(err)
	}
}

// replaced waits until a process has another number than before.
func (n *node) replaced(t *testing.T, process string, before int) {
	t.Helper()
	if err := n.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	if now := n.pid(t, process); now == before {
		t.Fatalf("the %s is still process %d", process, now)
	}
}

// agentKilled: no connection is lost and no new one fails.
func agentKilled(t *testing.T, n *node) {
	alive := n.hold(t, "lines", "plain")
	alive("before")
	agent := n.pid(t, "agent")
	n.signal(t, agent, unix.SIGKILL)
	for i := range 20 { // some while there is none, some while it comes back
		n.working(t)
		alive(fmt.Sprint("during-", i))
	}
	n.replaced(t, "agent", agent)
	n.working(t)
	alive("after")
	// It has its workloads again, and takes new ones.
	if text := n.sluice(t, "workload", "list"); !strings.Contains(text, "shop/web-a") || !strings.Contains(text, "shop/client") {
		t.Errorf("the new agent has lost a workload:\n%s", text)
	}
	second, err := n.serve("shop", "web-b", "app=web")
	if err != nil {
		t.Fatal(err)
	}
	n.servedBy(t, "http://web/", "web-a", "web-b")
	second.Stop()
	n.servedBy(t, "http://web/", "web-a")
	n.servedBy(t, "http://plain/", "web-a")
}

// agentStopped: names and connections need no agent.
func agentStopped(t *testing.T, n *node) {
	vip := n.vip(t, "shop/web", false).String()
	alive := n.hold(t, "lines", "plain")
	agent := n.pid(t, "agent")
	n.signal(t, agent, unix.SIGSTOP)
	defer n.signal(t, agent, unix.SIGCONT)
	if got := n.client.lookup(t, "ip4", "web"); got != vip {
		t.Errorf("web is %q, want %s", got, vip)
	}
	n.working(t)
	alive("during")
}

// proxyKilled: what the kernel does goes on, what needs the proxy waits or is
// refused and never goes past it, and all is well once it is back.
func proxyKilled(t *testing.T, n *node) {
	alive := n.hold(t, "plain")
	plain := n.vip(t, "shop/plain", false)
	proxy := n.pid(t, "proxy")
	n.signal(t, proxy, unix.SIGKILL)
	alive("during")
	if err := n.answers(call{Do: "http", URL: "http://" + plain.String() + "/"}, 200); err != nil {
		t.Errorf("a service without routes: %v", err)
	}
	n.replaced(t, "proxy", proxy)
	n.working(t)
	alive("after")
}

// proxyStopped: a proxy that does nothing is noticed, and said to be so.
func proxyStopped(t *testing.T, n *node) {
	alive := n.hold(t, "plain")
	plain, web := n.vip(t, "shop/plain", false), netip.AddrPortFrom(n.vip(t, "shop/web", false), 80)
	proxy := n.pid(t, "proxy")
	n.signal(t, proxy, unix.SIGSTOP)
	defer n.signal(t, proxy, unix.SIGCONT)
	eventually(t, func() error {
		a, err := n.client.try(call{Do: "connect", Addr: web.String()})
		if err == nil && a.Error != "ECONNREFUSED" {
			err = fmt.Errorf("dialling a steered service: %+v", a)
		}
		return err
	})
	n.flow(t, func(r record) bool { return r.Reason == "proxy-unavailable" && r.Destination.Service == "shop/web" },
		"--reason", "proxy-unavailable", "--from-workload", "shop/client", "--to-port", "80")
	if err := n.answers(call{Do: "http", URL: "http://" + plain.String() + "/"}, 200); err != nil {
		t.Errorf("a service without routes: %v", err)
	}
	alive("during")
	n.signal(t, proxy, unix.SIGCONT)
	eventually(t, func() error { return n.answers(call{Do: "http", URL: "http://web/"}, 200) })
}

// controlPlaneAway: agent and worker start from what they kept on disk.
func controlPlaneAway(t *testing.T, n *node) {
	alive := n.hold(t, "plain")
	// What a worker never needed it never asked for, and does not have on disk.
	n.client.must(t, call{Do: "grpc", Addr: "rpc:9090"})
	agent, proxy := n.pid(t, "agent"), n.pid(t, "proxy")
	socket := filepath.Join(n.RunDir(), "xds.sock")
	if err := os.Rename(socket, socket+".away"); err != nil {
		t.Fatal(err)
	}
	back := func() {
		if err := os.Rename(socket+".away", socket); err != nil {
			t.Fatal(err)
		}
	}
	away := true
	defer func() {
		if away {
			back()
		}
	}()
	n.signal(t, agent, unix.SIGKILL)
	n.signal(t, proxy, unix.SIGKILL)
	eventually(t, func() error {
		var st struct {
			Processes []struct {
				Process string
				Status  struct{ Component struct{ PID int } }
			}
		}
		n.read(t, &st, "status")
		for _, p := range st.Processes {
			if pid := p.Status.Component.PID; pid == 0 || pid == agent || pid == proxy {
				return fmt.Errorf("the %s is process %d", p.Process, pid)
			}
		}
		return nil
	})
	for _, url := range []string{"http://web/", "http://plain/"} {
		eventually(t, func() error { return n.answers(call{Do: "http", URL: url}, 200) })
	}
	eventually(t, func() error {
		return answers(n.outside, call{Do: "http", URL: "http://www.example/web", Resolve: edge4 + ":80"}, 200)
	})
	alive("during")
	if a := n.client.must(t, call{Do: "grpc", Addr: "rpc:9090"}); !strings.HasPrefix(a.Text, "web-a; web-a one; ") {
		t.Errorf("gRPC: %q", a.Text)
	}
	back()
	away = false
	n.write(t, "late.yaml", routedYAML("late", "new", "{name: late, port: 80}"))
	n.version(t, "late", "new")
	eventually(t, func() error {
		return answers(n.outside, call{Do: "http", URL: "https://www.example/web", Resolve: edge4 + ":443", CA: n.caPEM(t, "www")}, 200)
	})
}

// sameName: a second workload of a name is refused, and the first one lives.
func sameName(t *testing.T, n *node) {
	out, err := n.Workload(t.Context(), "shop", "web-a", nil, peerName, "serve", "impostor").Output()
	if exitCode(err) != 125 || !strings.Contains(out.Stderr, "shop/web-a") {
		t.Errorf("a second web-a: %v: %s", err, out.Stderr)
	}
}
