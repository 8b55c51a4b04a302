package lab_test

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// curl is a client that nobody changed for the mesh.
const curl = "/usr/bin/curl"

// TestReady: when a node says that it is ready, its proxy serves.
func TestReady(t *testing.T) {
	if r := shared.observe(t, "--reason", "proxy-unavailable", "--last", "1"); len(r) > 0 {
		t.Errorf("refused after the node said that it is ready: %+v", r)
	}
}

// TestCurl: by name, over either family, to a service that the proxy takes and to
// one that it never sees.
func TestCurl(t *testing.T) {
	for _, service := range []string{"web", "plain"} {
		for _, family := range []string{"-4", "-6"} {
			t.Run(service+family, func(t *testing.T) {
				name := shared.unique("curl")
				out, err := shared.Workload(t.Context(), "shop", name, []string{"-q"}, curl, "-sS", "--max-time", "20", family,
					"-w", "\n%{remote_ip} %{remote_port} %{http_code}", "http://"+service+".shop.svc.cluster.local/curl").Output()
				if err != nil {
					t.Fatalf("%v: %s", err, out.Stderr)
				}
				body, said, _ := strings.Cut(out.Stdout, "\n\n")
				vip := shared.vip(t, "shop/"+service, family == "-6")
				if want := fmt.Sprintf("%s 80 200", vip); strings.TrimSpace(said) != want {
					t.Errorf("curl says %q, want %q", said, want)
				}
				if !strings.HasPrefix(body, "web-a GET /curl host="+service+".shop.svc.cluster.local ") {
					t.Errorf("the server saw %q", body)
				}
				shared.flow(t, func(r record) bool {
					if service == "web" {
						return r.Type == "http" && r.HTTP.Path == "/curl" && r.HTTP.Status == 200 && r.HTTP.Route == "HTTPRoute/shop/web"
					}
					return r.Type == "socket" && r.Verdict == "translated" && r.Original == netip.AddrPortFrom(vip, 80)
				}, "--from-workload", "shop/"+name)
				if service == "plain" {
					for _, r := range shared.observe(t, "--from-workload", "shop/"+name) {
						if r.Type == "http" || r.Type == "tcp" || r.Verdict == "redirected" && r.Original.Port() == 80 {
							t.Errorf("the proxy saw a connection to a service without routes: %+v", r)
						}
					}
				}
			})
		}
	}
}

// TestServerSeesClient: the server's getpeername is an address of the client, of the
// same family if the proxy is not between them.
func TestServerSeesClient(t *testing.T) {
	own := map[string]string{}
	for _, network := range []string{"ip4", "ip6"} {
		own[network] = " peer=" + net.JoinHostPort(shared.client.must(t, call{Do: "own", Network: network}).Text, "")
	}
	for _, network := range []string{"ip4", "ip6"} {
		for _, service := range []string{"web", "plain"} {
			a := shared.client.must(t, call{Do: "http", URL: "http://" + net.JoinHostPort(shared.vip(t, "shop/"+service, network == "ip6").String(), "80") + "/"})
			if !strings.Contains(a.Text, own[network]) && (service == "plain" || !strings.Contains(a.Text, own["ip4"]) && !strings.Contains(a.Text, own["ip6"])) {
				t.Errorf("%s of %s: the server saw %q, not the client's %v", network, service, a.Text, own)
			}
		}
	}
}

// TestSockets: what system calls say, for each kind of client, steered and not.
func TestSockets(t *testing.T) {
	own4 := shared.client.must(t, call{Do: "own", Network: "ip4"}).Text
	own6 := shared.client.must(t, call{Do: "own", Network: "ip6"}).Text
	for _, service := range []string{"lines", "plain"} {
		v4, v6 := shared.vip(t, "shop/"+service, false), shared.vip(t, "shop/"+service, true)
		mapped := func(text string) string { return netip.AddrFrom16(netip.MustParseAddr(text).As16()).String() }
		for _, test := range []struct {
			name        string
			call        call
			peer, local string
		}{
			{"v4", call{Network: "tcp4", Addr: v4.String()}, v4.String(), own4},
			{"v6", call{Network: "tcp6", Addr: v6.String()}, v6.String(), own6},
			{"v4-mapped", call{Network: "tcp6", Addr: v4.String()}, mapped(v4.String()), mapped(own4)},
			{"non-blocking v4", call{Network: "tcp4", Addr: v4.String(), NonBlocking: true}, v4.String(), own4},
			{"non-blocking v6", call{Network: "tcp6", Addr: v6.String(), NonBlocking: true}, v6.String(), own6},
			{"non-blocking v4-mapped", call{Network: "tcp6", Addr: v4.String(), NonBlocking: true}, mapped(v4.String()), mapped(own4)},
		} {
			t.Run(service+" "+test.name, func(t *testing.T) {
				test.call.Do, test.call.Message = "raw", "hello"
				test.call.Addr = net.JoinHostPort(test.call.Addr, "7000")
				a := shared.client.must(t, test.call)
				if !strings.HasPrefix(a.Text, "web-a hello peer=") {
					t.Errorf("the answer is %q", a.Text)
				}
				if test.call.NonBlocking != (a.Connect == "EINPROGRESS") {
					t.Errorf("connect says %s", a.Connect)
				}
				if a.Peer != net.JoinHostPort(test.peer, "7000") {
					t.Errorf("getpeername says %s, want the service %s", a.Peer, test.peer)
				}
				if local, err := netip.ParseAddrPort(a.Local); err != nil || local.Addr().String() != test.local {
					t.Errorf("getsockname says %s, want %s", a.Local, test.local)
				}
			})
		}
	}
}

// TestUDP: connected and not, the answer comes from the service.
func TestUDP(t *testing.T) {
	for _, network := range []string{"udp4", "udp6", "udp4-mapped"} {
		for _, unconnected := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s unconnected=%t", network, unconnected), func(t *testing.T) {
				vip := shared.vip(t, "shop/plain", network == "udp6")
				dial, peer := network, vip
				if network == "udp4-mapped" {
					dial, peer = "udp6", netip.AddrFrom16(vip.As16())
				}
				a := shared.client.must(t, call{Do: "raw", Network: dial, Addr: netip.AddrPortFrom(vip, 7001).String(), Message: "hello", Unconnected: unconnected})
				if !strings.HasPrefix(a.Text, "web-a hello peer=") {
					t.Errorf("the answer is %q", a.Text)
				}
				if a.Peer != netip.AddrPortFrom(peer, 7001).String() {
					t.Errorf("it came from %s, want the service %s", a.Peer, peer)
				}
			})
		}
	}
}

// TestNames: each form of a service's name, both families, and what is no name.
func TestNames(t *testing.T) {
	for _, name := range []string{"web", "web.shop", "web.shop.svc", "web.shop.svc.cluster.local", "web.shop.svc.cluster.local."} {
		for network, six := range map[string]bool{"ip4": false, "ip6": true} {
			if got, want := shared.client.lookup(t, network, name), shared.vip(t, "shop/web", six).String(); got != want {
				t.Errorf("%s %s is %q, want %q", network, name, got, want)
			}
		}
	}
	if a := shared.client.do(t, call{Do: "lookup", Network: "ip", Host: "nobody.shop.svc.cluster.local"}); !strings.Contains(a.Error, "no such host") {
		t.Errorf("a name that does not exist: %+v", a)
	}
	shared.flow(t, func(r record) bool { return r.DNS.RCode == "NXDOMAIN" && r.Source.Workload == "shop/client" }, "--dns-query", `^nobody\.shop`)
}

// TestCapturePorts: the proxy's ports are nobody's to dial, whichever way.
func TestCapturePorts(t *testing.T) {
	var list []struct {
		Name      string
		Addresses []netip.Addr
	}
	shared.read(t, &list, "workload", "list", "shop/web-a")
	targets := []string{"127.0.0.1", "::1", "::ffff:127.0.0.1"}
	for _, network := range []string{"ip4", "ip6"} {
		targets = append(targets, shared.client.must(t, call{Do: "own", Network: network}).Text)
	}
	for _, a := range list[0].Addresses {
		targets = append(targets, a.String())
	}
	if len(targets) != 7 {
		t.Fatalf("targets %v", targets)
	}
	for _, target := range targets {
		for _, port := range []uint16{15001, 15006, 15008, 15053} {
			addr := netip.AddrPortFrom(netip.MustParseAddr(target), port)
			network := "tcp4"
			if addr.Addr().Is6() {
				network = "tcp6"
			}
			a := shared.client.do(t, call{Do: "raw", Network: network, Addr: addr.String(), Message: "GET / HTTP/1.1\r\nHost: web\r\n\r\n"})
			if a.Error != "EPERM" {
				t.Errorf("%s: %+v", addr, a)
			}
			want := netip.AddrPortFrom(addr.Addr().Unmap(), port)
			shared.flow(t, func(r record) bool {
				return r.Reason == "capture-port" && r.Verdict == "dropped" && (r.Destination.Address == want || r.Original == want)
			}, "--from-workload", "shop/client", "--verdict", "dropped", "--to-port", fmt.Sprint(port))
		}
	}
}

// TestGRPC: unary, a conversation, and a method without a route.
func TestGRPC(t *testing.T) {
	a := shared.client.must(t, call{Do: "grpc", Addr: "rpc:9090"})
	if want := []string{"OK", "OK", "Unimplemented"}; !slices.Equal(a.Codes, want) {
		t.Errorf("codes %v, want %v", a.Codes, want)
	}
	if want := "web-a; web-a one; web-a two; web-a three"; a.Text != want {
		t.Errorf("said %q, want %q", a.Text, want)
	}
	r := shared.flow(t, func(r record) bool { return r.HTTP.Path == "/lab.Echo/Chat" }, "--protocol", "grpc", "--from-workload", "shop/client")
	if r.HTTP.Route != "GRPCRoute/shop/rpc" || r.HTTP.Proto != "HTTP/2" {
		t.Errorf("flow %+v", r)
	}
}

// TestUpgrade: after 101 both sides own the connection.
func TestUpgrade(t *testing.T) {
	c := shared.client
	c.must(t, call{Do: "open", Name: "upgrade", Addr: "web:80"})
	defer c.must(t, call{Do: "close", Name: "upgrade"})
	line := c.must(t, call{Do: "say", Name: "upgrade", Message: "GET /web/upgrade HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: lines\r\n\r"}).Text
	if !strings.HasPrefix(line, "HTTP/1.1 101 ") {
		t.Fatalf("status line %q", line)
	}
	head := ""
	for line != "" {
		line = strings.ToLower(c.must(t, call{Do: "line", Name: "upgrade"}).Text)
		head += line + "\n"
	}
	if !strings.Contains(head, "upgrade: lines\n") {
		t.Errorf("head %q", head)
	}
	for _, word := range []string{"one", "two"} {
		if got := c.must(t, call{Do: "say", Name: "upgrade", Message: word}).Text; !strings.HasPrefix(got, "web-a "+word+" peer=") {
			t.Errorf("after 101: %q", got)
		}
	}
}

// TestHalfClose: a client that has said all still hears the answer, steered or not.
func TestHalfClose(t *testing.T) {
	for _, service := range []string{"lines", "plain"} {
		a := shared.client.must(t, call{Do: "bytes", Addr: service + ":7000", Message: "one\ntwo\n", Shut: true})
		if !strings.HasPrefix(a.Text, "web-a one peer=") || !strings.HasSuffix(a.Text, "end after 2\n") {
			t.Errorf("%s: %q", service, a.Text)
		}
	}
}

// TestServerFirst: the proxy does not wait long for a client that says nothing.
func TestServerFirst(t *testing.T) {
	a := shared.client.must(t, call{Do: "bytes", Addr: "lines:7002", Listen: true, Shut: true, Message: "hello\n"})
	if !strings.HasPrefix(a.Text, "220 web-a\nweb-a hello peer=") {
		t.Errorf("%q", a.Text)
	}
	// Mail servers' clients give up after minutes, people after seconds.
	if a.Took > 5*time.Second {
		t.Errorf("it took %s", a.Took)
	}
	shared.flow(t, func(r record) bool { return r.Type == "tcp" && r.Verdict == "forwarded" }, "--to-service", "shop/lines", "--port", "7002")
}
