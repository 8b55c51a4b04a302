package lab_test

import (
	"fmt"
	"net"
	"strings"
	"testing"
)

// TestGatewayHTTP: from outside, over both families.
func TestGatewayHTTP(t *testing.T) {
	for addr, from := range map[string]string{edge4: "203.0.113.2", edge6: "2001:db8:1::2"} {
		a := shared.outside.must(t, call{Do: "http", URL: "http://www.example/web/1", Resolve: net.JoinHostPort(addr, "80")})
		if a.Status != 200 || !strings.HasPrefix(a.Text, "web-a GET /web/1 host=www.example ") || !strings.HasSuffix(a.Text, " for="+from+" proto=http") {
			t.Errorf("%s: status %d, the server saw %q", addr, a.Status, a.Text)
		}
	}
}

// TestGatewayHTTPS: ALPN decides what is spoken, SNI which certificate is shown.
func TestGatewayHTTPS(t *testing.T) {
	for addr, from := range map[string]string{edge4: "203.0.113.2", edge6: "2001:db8:1::2"} {
		for _, http1 := range []bool{false, true} {
			for _, host := range []string{"www", "b"} {
				a := shared.outside.must(t, call{Do: "http", URL: "https://" + host + ".example/web/1", CA: shared.caPEM(t, host), Resolve: net.JoinHostPort(addr, "443"), HTTP1: http1})
				want := "HTTP/2.0"
				if http1 {
					want = "HTTP/1.1"
				}
				if a.Status != 200 || a.Proto != want || !strings.HasSuffix(a.Text, " for="+from+" proto=https") {
					t.Errorf("%s %s: status %d, %s, the server saw %q", host, addr, a.Status, a.Proto, a.Text)
				}
			}
		}
	}
	a := shared.outside.must(t, call{Do: "tls", Addr: edge4 + ":443", Name: "www.example", CA: shared.caPEM(t, "www")})
	if a.Proto != "h2" {
		t.Errorf("of h2 and http/1.1 it chose %q", a.Proto)
	}
}

// TestGatewayNames: what no listener or route serves is refused in the right way.
func TestGatewayNames(t *testing.T) {
	for name, sni := range map[string]string{"unknown": "nobody.example", "none": ""} {
		a := shared.outside.do(t, call{Do: "tls", Addr: edge4 + ":443", Name: sni, CA: shared.caPEM(t, "www")})
		if a.Error == "" || strings.Contains(a.Error, "certificate") {
			t.Errorf("%s SNI: %+v", name, a)
		}
	}
	shared.flow(t, func(r record) bool { return r.Reason == "no-chain" }, "--reason", "no-chain")
	for _, test := range []struct {
		name   string
		call   call
		status int
		reason string
	}{
		{"a host that no listener has", call{URL: "http://nobody.example/web", Resolve: edge4 + ":80"}, 404, "no-route"},
		{"a path that no route has", call{URL: "http://www.example/nowhere", Resolve: edge4 + ":80"}, 404, "no-route"},
		{"another listener's host", call{URL: "https://www.example/web", Header: map[string]string{"Host": "b.example"}, CA: shared.caPEM(t, "www"), Resolve: edge4 + ":443"}, 421, "misdirected"},
		{"another listener's host in HTTP/1.1", call{URL: "https://www.example/web", HTTP1: true, Header: map[string]string{"Host": "b.example"}, CA: shared.caPEM(t, "www"), Resolve: edge4 + ":443"}, 421, "misdirected"},
	} {
		test.call.Do = "http"
		a := shared.outside.must(t, test.call)
		if a.Status != test.status || a.Header.Get("X-Sluice-Reason") != test.reason {
			t.Errorf("%s: status %d, reason %q, want %d %s", test.name, a.Status, a.Header.Get("X-Sluice-Reason"), test.status, test.reason)
		}
	}
}

// TestGatewayUpgrade: 101 through TLS. A client that offers HTTP/1.1 alone, as those
// of WebSocket do, gets it.
func TestGatewayUpgrade(t *testing.T) {
	a := shared.outside.must(t, call{Do: "http", URL: "https://www.example/web/upgrade", HTTP1: true, CA: shared.caPEM(t, "www"), Resolve: edge4 + ":443",
		Header: map[string]string{"Connection": "Upgrade", "Upgrade": "lines"}, Message: "hello"})
	if a.Status != 101 || a.Header.Get("Upgrade") != "lines" || !strings.HasPrefix(a.Text, "web-a hello peer=") {
		t.Errorf("status %d, %v, then %q", a.Status, a.Header, a.Text)
	}
}

// smuggling are requests whose end two readers may see at different bytes, or that
// are not what RFC 9112 calls a request. The word SMUGGLED is a path that a server
// must never see, MARK one of its own for each.
var smuggling = []struct{ name, text string }{
	{"Content-Length and Transfer-Encoding", "POST /web/MARK HTTP/1.1\r\nHost: www.example\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /web/SMUGGLED HTTP/1.1\r\nHost: www.example\r\n\r\n"},
	{"Transfer-Encoding and Content-Length", "POST /web/MARK HTTP/1.1\r\nHost: www.example\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\nGET /web/SMUGGLED HTTP/1.1\r\nHost: www.example\r\n\r\n"},
	{"two Content-Lengths", "POST /web/MARK HTTP/1.1\r\nHost: www.example\r\nContent-Length: 0\r\nContent-Length: 44\r\n\r\nGET /web/SMUGGLED HTTP/1.1\r\nHost: www.example\r\n\r\n"},
	{"a list of Content-Lengths", "POST /web/MARK HTTP/1.1\r\nHost: www.example\r\nContent-Length: 0, 44\r\n\r\nGET /web/SMUGGLED HTTP/1.1\r\nHost: www.example\r\n\r\n"},
	{"a signed Content-Length", "POST /web/MARK HTTP/1.1\r\nHost: www.example\r\nContent-Length: +4\r\n\r\nabcd"},
	{"a Transfer-Encoding that is not chunked last", "POST /web/MARK HTTP/1.1\r\nHost: www.example\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\nGET /web/SMUGGLED HTTP/1.1\r\nHost: www.example\r\n\r\n"},
	{"chunked twice", "POST /web/MARK HTTP/1.1\r\nHost: www.example\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /web/SMUGGLED HTTP/1.1\r\nHost: www.example\r\n\r\n"},
	{"xchunked", "POST /web/MARK HTTP/1.1\r\nHost: www.example\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"},
	{"a space before the colon", "POST /web/MARK HTTP/1.1\r\nHost: www.example\r\nTransfer-Encoding : chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n"},
	{"a folded field", "POST /web/MARK HTTP/1.1\r\nHost: www.example\r\nX: a\r\n Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n"},
	{"a bare LF in the head", "GET /web/MARK HTTP/1.1\nHost: www.example\n\nGET /web/SMUGGLED HTTP/1.1\nHost: www.example\n\n"},
	{"a bare LF after one field", "GET /web/MARK HTTP/1.1\r\nHost: www.example\r\nX: a\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
	{"a bare CR in a value", "GET /web/MARK HTTP/1.1\r\nHost: www.example\r\nX: a\rTransfer-Encoding: chunked\r\n\r\n"},
	{"a NUL in a value", "GET /web/MARK HTTP/1.1\r\nHost: www.example\r\nX: a\x00b\r\n\r\n"},
	{"no Host", "GET /web/MARK HTTP/1.1\r\nX: a\r\n\r\n"},
	{"two Hosts", "GET /web/MARK HTTP/1.1\r\nHost: www.example\r\nHost: b.example\r\n\r\n"},
	{"a field without a name", "GET /web/MARK HTTP/1.1\r\nHost: www.example\r\n: a\r\n\r\n"},
	{"a space in the target", "GET /web/MARK /web/SMUGGLED HTTP/1.1\r\nHost: www.example\r\n\r\n"},
	{"Transfer-Encoding in HTTP/1.0", "POST /web/MARK HTTP/1.0\r\nHost: www.example\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /web/SMUGGLED HTTP/1.0\r\nHost: www.example\r\n\r\n"},
}

// TestSmuggling: each is 400, the connection is closed, and no server sees any of it.
func TestSmuggling(t *testing.T) {
	// Also where the proxy is dialled by a workload.
	for side, c := range map[string]*console{edge4 + ":80": shared.outside, "web:80": shared.client} {
		for i, test := range smuggling {
			mark := fmt.Sprintf("smuggle-%d", i)
			a := c.do(t, call{Do: "bytes", Addr: side, Message: strings.ReplaceAll(test.text, "MARK", mark)})
			if a.Error != "" || !strings.HasPrefix(a.Text, "HTTP/1.1 400 ") || strings.Count(a.Text, "HTTP/1.1 ") != 1 || !strings.Contains(a.Text, "\r\nx-sluice-reason: downstream-protocol\r\n") {
				t.Errorf("%s at %s is answered with %q %s", test.name, side, a.Text, a.Error)
			}
		}
	}
	// A request that comes after all of them finds out what came through before.
	seen := shared.client.must(t, call{Do: "http", URL: "http://plain/web/seen"})
	for line := range strings.Lines(seen.Text) {
		if strings.Contains(line, "SMUGGLED") || strings.Contains(line, "smuggle-") {
			t.Errorf("the server saw %q", line)
		}
	}
	if !strings.Contains(seen.Text, "GET /") {
		t.Errorf("the server should have seen something: %q", seen.Text)
	}
}

// TestNotHTTP: a Gateway has nothing to say to who speaks neither HTTP nor TLS.
func TestNotHTTP(t *testing.T) {
	for _, text := range []string{"GET /web/SMUGGLED HTTP/1.1x\r\nHost: www.example\r\n\r\n", "HELO www.example\r\n", "\x00\x01\x02\x03\r\n\r\n"} {
		if a := shared.outside.do(t, call{Do: "bytes", Addr: edge4 + ":80", Message: text}); a.Error != "ECONNRESET" || a.Text != "" {
			t.Errorf("%q is answered with %q %s", text, a.Text, a.Error)
		}
	}
	shared.flow(t, func(r record) bool {
		return r.Reason == "downstream-protocol" && r.Type == "tcp" && r.Source.Address.Addr().String() == "203.0.113.2"
	}, "--reason", "downstream-protocol")
}

// TestSmugglingInABody: a body whose chunks are wrong ends with the connection.
func TestSmugglingInABody(t *testing.T) {
	for i, chunk := range []string{"4 \nabcd\r\n0\r\n\r\n", "0x4\r\nabcd\r\n0\r\n\r\n", "-4\r\nabcd\r\n0\r\n\r\n", "4\r\nabcdX\r\n0\r\n\r\n", "4\nabcd\n0\n\n", "ffffffffffffffff4\r\nabcd\r\n0\r\n\r\n"} {
		a := shared.outside.must(t, call{Do: "bytes", Addr: edge4 + ":80",
			Message: "POST /web/chunk HTTP/1.1\r\nHost: www.example\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk + "GET /web/SMUGGLED HTTP/1.1\r\nHost: www.example\r\n\r\n"})
		// A server that does not wait for the body may have answered before.
		if strings.Count(a.Text, "HTTP/1.1 ") > 1 || !strings.HasPrefix(a.Text, "HTTP/1.1 400 ") && !strings.HasPrefix(a.Text, "HTTP/1.1 200 ") {
			t.Errorf("chunk %d is answered with %q", i, a.Text)
		}
	}
	if seen := shared.client.must(t, call{Do: "http", URL: "http://plain/web/seen"}); strings.Contains(seen.Text, "SMUGGLED") {
		t.Errorf("the server saw %q", seen.Text)
	}
}
