package http1

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-mesh/sluice/l7proxy/message"
)

// headText is a head in one line, so that tables stay readable.
func headText(h *message.Head) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s", h.Proto)
	if h.Status > 0 {
		fmt.Fprintf(&b, " %d", h.Status)
	} else {
		fmt.Fprintf(&b, " %s scheme=%s authority=%s path=%s", h.Method, h.Scheme, h.Authority, h.Path)
	}
	for _, f := range h.Fields {
		fmt.Fprintf(&b, " [%s: %s]", f.Name, f.Value)
	}
	if len(h.Upgrade) > 0 {
		fmt.Fprintf(&b, " upgrade=%s", h.Upgrade)
	}
	fmt.Fprintf(&b, " length=%d", h.ContentLength)
	for _, s := range []struct {
		on   bool
		name string
	}{{h.End, "end"}, {h.Close, "close"}, {h.Expect100, "expect"}} {
		if s.on {
			b.WriteString(" " + s.name)
		}
	}
	return b.String()
}

// run feeds input in steps of the given size to p and returns what came out, one line per event,
// adjacent pieces of a body joined. eof says whether to close at the end.
func run(p *Parser, input string, step int, eof bool) (events []string, err error) {
	var buf []byte
	data := ""
	flush := func() {
		if data != "" {
			events = append(events, "data "+data)
			data = ""
		}
	}
	rest := input
	for {
		for {
			n, ev, err := p.Next(buf)
			if err != nil {
				flush()
				return events, err
			}
			if n < 0 || n > len(buf) {
				panic(fmt.Sprintf("took %d of %d bytes", n, len(buf)))
			}
			switch ev.Kind {
			case Head:
				flush()
				events = append(events, "head "+headText(p.Head()))
			case Data:
				if len(ev.Data) == 0 {
					panic("empty data event")
				}
				data += string(ev.Data)
			case Trailers:
				flush()
				line := "trailers"
				for _, f := range p.Trailers() {
					line += fmt.Sprintf(" [%s: %s]", f.Name, f.Value)
				}
				events = append(events, line)
			case End:
				flush()
				events = append(events, "end")
			}
			buf = buf[n:]
			// A copy at another address: no event may depend on where the bytes lie.
			if len(buf) < 1<<10 {
				buf = append([]byte(nil), buf...)
			}
			if ev.Kind == NeedMore {
				break
			}
		}
		if rest == "" {
			break
		}
		k := min(step, len(rest))
		buf = append(buf, rest[:k]...)
		rest = rest[k:]
	}
	if eof {
		ev, err := p.EOF()
		flush()
		if err != nil {
			return events, err
		}
		events = append(events, strings.ToLower(ev.Kind.String()))
	}
	flush()
	return events, nil
}

// both runs input whole and byte by byte and wants the same.
func both(t *testing.T, make func() *Parser, input string, eof bool) ([]string, error) {
	t.Helper()
	whole, err := run(make(), input, len(input)+1, eof)
	bytewise, err2 := run(make(), input, 1, eof)
	if !slices.Equal(whole, bytewise) {
		t.Errorf("%q: whole %q, byte by byte %q", input, whole, bytewise)
	}
	if fmt.Sprint(err) != fmt.Sprint(err2) {
		t.Errorf("%q: whole %v, byte by byte %v", input, err, err2)
	}
	return whole, err
}

func newRequest() *Parser { return NewRequestParser(Limits{}) }

func TestRequests(t *testing.T) {
	for _, test := range []struct {
		name, input string
		want        []string
	}{
		{
			"plain", "GET /a?b=c HTTP/1.1\r\nHost: x.example:8080\r\nAccept:\t*/*  \r\nX-Empty:\r\n\r\n",
			[]string{"head HTTP/1.1 GET scheme= authority=x.example:8080 path=/a?b=c [accept: */*] [x-empty: ] length=-1 end", "end"},
		},
		{
			"leading empty line", "\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
			[]string{"head HTTP/1.1 GET scheme= authority=x path=/ length=-1 end", "end"},
		},
		{
			"pipelined", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcGET /2 HTTP/1.1\r\nHost: y\r\n\r\n",
			[]string{
				"head HTTP/1.1 POST scheme= authority=x path=/ [content-length: 3] length=3", "data abc", "end",
				"head HTTP/1.1 GET scheme= authority=y path=/2 length=-1 end", "end",
			},
		},
		{
			"length zero", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
			[]string{"head HTTP/1.1 POST scheme= authority=x path=/ [content-length: 0] length=0 end", "end"},
		},
		{
			"equal lengths", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
			[]string{"head HTTP/1.1 POST scheme= authority=x path=/ [content-length: 1] length=1", "data a", "end"},
		},
		{
			"chunked with extensions and trailers",
			"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\nTrailer: Grpc-Status\r\n\r\n" +
				"5\r\nhello\r\n00A;a=\"b;c\";d\r\n, world.  \r\n0 ;x\r\nGrpc-Status: 0\r\nKeep-Alive: 1\r\n\r\nGET / HTTP/1.0\r\n\r\n",
			[]string{
				"head HTTP/1.1 POST scheme= authority=x path=/ [trailer: Grpc-Status] length=-1", "data hello, world.  ",
				"trailers [grpc-status: 0]", "end", "head HTTP/1.0 GET scheme= authority= path=/ length=-1 end close", "end",
			},
		},
		{
			"HTTP/1.0 keep-alive", "GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\nGET / HTTP/1.0\r\n\r\n",
			[]string{
				"head HTTP/1.0 GET scheme= authority= path=/ length=-1 end", "end",
				"head HTTP/1.0 GET scheme= authority= path=/ length=-1 end close", "end",
			},
		},
		{
			"nothing after close", "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
			[]string{"head HTTP/1.1 GET scheme= authority=x path=/ length=-1 end close", "end"},
		},
		{
			"later minor version", "GET / HTTP/1.7\r\nHost: x\r\n\r\n",
			[]string{"head HTTP/1.1 GET scheme= authority=x path=/ length=-1 end", "end"},
		},
		{
			"absolute form", "GET HTTP://Y.example:81/p?q HTTP/1.1\r\nHost: x\r\n\r\n",
			[]string{"head HTTP/1.1 GET scheme=http authority=Y.example:81 path=/p?q length=-1 end", "end"},
		},
		{
			"absolute form without a path", "GET https://y HTTP/1.1\r\nHost: x\r\n\r\nGET http://y?q=/ HTTP/1.1\r\nHost: x\r\n\r\nOPTIONS http://y HTTP/1.1\r\nHost: x\r\n\r\n",
			[]string{
				"head HTTP/1.1 GET scheme=https authority=y path=/ length=-1 end", "end",
				"head HTTP/1.1 GET scheme=http authority=y path=/?q=/ length=-1 end", "end",
				"head HTTP/1.1 OPTIONS scheme=http authority=y path=* length=-1 end", "end",
			},
		},
		{
			"asterisk form", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
			[]string{"head HTTP/1.1 OPTIONS scheme= authority=x path=* length=-1 end", "end"},
		},
		{
			"connect", "CONNECT [::1]:443 HTTP/1.1\r\nHost: x\r\n\r\n",
			[]string{"head HTTP/1.1 CONNECT scheme= authority=[::1]:443 path= length=-1 end", "end"},
		},
		{
			"empty host", "GET / HTTP/1.1\r\nHost:\r\n\r\n",
			[]string{"head HTTP/1.1 GET scheme= authority= path=/ length=-1 end", "end"},
		},
		{
			"fields of the hop",
			"GET / HTTP/1.1\r\nHost: x\r\nX-Hop: 1\r\nConnection: X-HOP, keep-alive,, TE ,x-gone\r\nKeep-Alive: 5\r\nProxy-Connection: a\r\nTE: gzip, Trailers\r\nX-End: 2\r\nx-hop: 3\r\n\r\n",
			[]string{"head HTTP/1.1 GET scheme= authority=x path=/ [te: Trailers] [x-end: 2] length=-1 end", "end"},
		},
		{
			"te without trailers", "GET / HTTP/1.1\r\nHost: x\r\nTE: deflate;q=0.5\r\n\r\n",
			[]string{"head HTTP/1.1 GET scheme= authority=x path=/ length=-1 end", "end"},
		},
		{
			"websocket", "GET /chat HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\r\n",
			[]string{"head HTTP/1.1 GET scheme= authority=x path=/chat [sec-websocket-version: 13] upgrade=websocket length=-1 end", "end"},
		},
		{
			"upgrade not nominated, or to HTTP/2", "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket, h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AA\r\n\r\n",
			[]string{
				"head HTTP/1.1 GET scheme= authority=x path=/ length=-1 end", "end",
				"head HTTP/1.1 GET scheme= authority=x path=/ length=-1 end", "end",
			},
		},
		{
			"expectation", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nExpect: 100-Continue\r\n\r\na",
			[]string{"head HTTP/1.1 POST scheme= authority=x path=/ [content-length: 1] [expect: 100-Continue] length=1 expect", "data a", "end"},
		},
		{
			"expectation in HTTP/1.0", "POST / HTTP/1.0\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\na",
			[]string{"head HTTP/1.0 POST scheme= authority= path=/ [content-length: 1] length=1 close", "data a", "end"},
		},
		{
			"obs-text and tab in a value", "GET / HTTP/1.1\r\nHost: x\r\nX-A: gr\xfc\xdfe\tan alle hier\r\n\r\n",
			[]string{"head HTTP/1.1 GET scheme= authority=x path=/ [x-a: gr\xfc\xdfe\tan alle hier] length=-1 end", "end"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := both(t, newRequest, test.input, false)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("got  %q\nwant %q", got, test.want)
			}
		})
	}
}

func TestRefusedRequests(t *testing.T) {
	const line, host = "GET / HTTP/1.1\r\n", "Host: x\r\n"
	post := func(fields string) string { return "POST / HTTP/1.1\r\nHost: x\r\n" + fields + "\r\n" }
	chunks := func(body string) string { return post("Transfer-Encoding: chunked\r\n") + body }
	for _, test := range []struct {
		name, input string
		status      int
	}{
		{"both framings", post("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n"), 400},
		{"both framings, other order", post("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n"), 400},
		{"different lengths", post("Content-Length: 3\r\nContent-Length: 4\r\n"), 400},
		{"list of lengths", post("Content-Length: 3, 3\r\n"), 400},
		{"signed length", post("Content-Length: +3\r\n"), 400},
		{"negative length", post("Content-Length: -1\r\n"), 400},
		{"hexadecimal length", post("Content-Length: 0x3\r\n"), 400},
		{"empty length", post("Content-Length:\r\n"), 400},
		{"length with a space", post("Content-Length: 1 2\r\n"), 400},
		{"huge length", post("Content-Length: 9223372036854775808\r\n"), 400},
		{"coding before chunked", post("Transfer-Encoding: gzip, chunked\r\n"), 501},
		{"coding before chunked, two fields", post("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n"), 501},
		{"coding after chunked", post("Transfer-Encoding: chunked, gzip\r\n"), 400},
		{"other coding", post("Transfer-Encoding: gzip\r\n"), 400},
		{"identity", post("Transfer-Encoding: identity\r\n"), 400},
		{"chunked twice", post("Transfer-Encoding: chunked, chunked\r\n"), 400},
		{"chunked twice, two fields", post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), 400},
		{"chunked and identity", post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n"), 400},
		{"hidden chunked", post("Transfer-Encoding: \x0bchunked\r\n"), 400},
		{"quoted chunked", post("Transfer-Encoding: \"chunked\"\r\n"), 400},
		{"empty coding", post("Transfer-Encoding:\r\n"), 400},
		{"coding in HTTP/1.0", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
		{"space before colon", post("Content-Length : 3\r\n"), 400},
		{"tab before colon", post("Transfer-Encoding\t: chunked\r\n"), 400},
		{"folded line", line + host + "X-A: 1\r\n 2\r\n\r\n", 400},
		{"folded first line", line + " Host: x\r\n\r\n", 400},
		{"no colon", line + host + "X-A\r\n\r\n", 400},
		{"no name", line + host + ": a\r\n\r\n", 400},
		{"name with a bracket", line + host + "X(A): 1\r\n\r\n", 400},
		{"name beyond ASCII", line + host + "X\xc4: 1\r\n\r\n", 400},
		{"bare CR in a value", line + host + "X-A: 1\r2\r\n\r\n", 400},
		{"two CR", line + host + "X-A: 1\r\r\n\r\n", 400},
		{"NUL in a value", line + host + "X-A: 1\x002\r\n\r\n", 400},
		{"DEL in a long value", line + host + "X-A: 123456789012\x7f3456\r\n\r\n", 400},
		{"control at the end of a long value", line + host + "X-A: 12345678901234\x01\r\n\r\n", 400},
		{"bare LF", "GET / HTTP/1.1\nHost: x\n\n", 400},
		{"bare LF after fields", line + host + "\n", 400},
		{"bare LF in a value", line + host + "X-A: 1\nX-B: 2\r\n\r\n", 400},
		{"no host", line + "\r\n", 400},
		{"two hosts", line + host + host + "\r\n", 400},
		{"two hosts in HTTP/1.0", "GET / HTTP/1.0\r\n" + host + host + "\r\n", 400},
		{"no host in absolute form", "GET http://x/ HTTP/1.1\r\n\r\n", 400},
		{"host with a path", line + "Host: x/y\r\n\r\n", 400},
		{"host with user information", line + "Host: a@x\r\n\r\n", 400},
		{"host list", line + "Host: x, y z\r\n\r\n", 400},
		{"host with a bad port", line + "Host: x:70000\r\n\r\n", 400},
		{"host with two colons", line + "Host: x:1:2\r\n\r\n", 400},
		{"host with an empty port", line + "Host: x:\r\n\r\n", 400},
		{"host with an open bracket", line + "Host: [::1\r\n\r\n", 400},
		{"host with a bad escape", line + "Host: x%zz\r\n\r\n", 400},
		{"no version", "GET /\r\n", 400},
		{"simple request after a line", "\r\nGET /\r\n", 400},
		{"two empty lines", "\r\n\r\nGET / HTTP/1.1\r\n", 400},
		{"two spaces", "GET  / HTTP/1.1\r\n" + host + "\r\n", 400},
		{"space at the end", "GET / HTTP/1.1 \r\n" + host + "\r\n", 400},
		{"space in the target", "GET /a b HTTP/1.1\r\n" + host + "\r\n", 400},
		{"tab as separator", "GET\t/ HTTP/1.1\r\n" + host + "\r\n", 400},
		{"fragment", "GET /a#b HTTP/1.1\r\n" + host + "\r\n", 400},
		{"fragment in a long target", "GET /aaaaaaaaaaaaaaaaaa#b HTTP/1.1\r\n" + host + "\r\n", 400},
		{"target beyond ASCII", "GET /aaaaaaaaaaaaa\xfc HTTP/1.1\r\n" + host + "\r\n", 400},
		{"relative target", "GET a HTTP/1.1\r\n" + host + "\r\n", 400},
		{"asterisk for GET", "GET * HTTP/1.1\r\n" + host + "\r\n", 400},
		{"other scheme", "GET ftp://x/ HTTP/1.1\r\n" + host + "\r\n", 400},
		{"absolute form without host", "GET http:///a HTTP/1.1\r\n" + host + "\r\n", 400},
		{"absolute form with user information", "GET http://a@x/a HTTP/1.1\r\n" + host + "\r\n", 400},
		{"connect without a port", "CONNECT x HTTP/1.1\r\n" + host + "\r\n", 400},
		{"connect to an address without a port", "CONNECT [::1] HTTP/1.1\r\n" + host + "\r\n", 400},
		{"connect with a path", "CONNECT /x:1 HTTP/1.1\r\n" + host + "\r\n", 400},
		{"connect with content", "CONNECT x:1 HTTP/1.1\r\n" + host + "Content-Length: 1\r\n\r\n", 400},
		{"connect with chunks", "CONNECT x:1 HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n", 400},
		{"lower-case version", "GET / http/1.1\r\n" + host + "\r\n", 400},
		{"long version", "GET / HTTP/1.10\r\n" + host + "\r\n", 400},
		{"version 2", "GET / HTTP/2.0\r\n" + host + "\r\n", 505},
		{"version 0.9", "GET / HTTP/0.9\r\n" + host + "\r\n", 505},
		{"method with a slash", "G/T / HTTP/1.1\r\n" + host + "\r\n", 400},
		{"other expectation", post("Expect: 200-ok\r\nContent-Length: 1\r\n"), 417},
		{"connection names host", line + host + "Connection: Host\r\n\r\n", 400},
		{"connection names content-length", post("Content-Length: 1\r\nConnection: content-length\r\n"), 400},
		{"connection with quotes", line + host + "Connection: \"close\"\r\n\r\n", 400},
		{"two upgrades", line + host + "Upgrade: a\r\nUpgrade: b\r\n\r\n", 400},
		{"chunk size empty", chunks("\r\n"), 400},
		{"chunk size with a prefix", chunks("0x5\r\nhello"), 400},
		{"chunk size signed", chunks("+5\r\nhello"), 400},
		{"chunk size spaced", chunks(" 5\r\nhello"), 400},
		{"chunk size with a space behind", chunks("5 \r\nhello"), 400},
		{"chunk size too big", chunks("8000000000000000\r\n"), 400},
		{"chunk size too long", chunks("00000000000000001\r\na"), 400},
		{"chunk size with a bare LF", chunks("5\nhello"), 400},
		{"chunk extension with a bare CR", chunks("5;a\rb\r\nhello"), 400},
		{"chunk extension with a bare LF", chunks("5;a\nhello"), 400},
		{"chunk longer than said", chunks("5\r\nhello!\r\n"), 400},
		{"chunk with a bare LF behind", chunks("5\r\nhello\n0\r\n"), 400},
		{"chunk line too long", chunks("5;" + strings.Repeat("a", 300)), 400},
		{"framing of chunks", chunks(strings.Repeat("1;"+strings.Repeat("a", 200)+"\r\nb\r\n", 200)), 400},
		{"trailer with framing", chunks("0\r\nContent-Length: 3\r\n\r\n"), 400},
		{"trailer with a coding", chunks("0\r\nTransfer-Encoding: chunked\r\n\r\n"), 400},
		{"trailer with a fold", chunks("0\r\nA: 3\r\n b\r\n\r\n"), 400},
		{"trailer with a host", chunks("0\r\nHost: y\r\n\r\n"), 400},
		{"too many trailers", chunks("0\r\n" + strings.Repeat("a: b\r\n", 129)), 431},
		{"too many fields", line + strings.Repeat("a: b\r\n", 129), 431},
		{"too large a head", line + "a: " + strings.Repeat("b", 64<<10), 431},
		{"too large a head, complete", line + host + "a: " + strings.Repeat("b", 64<<10) + "\r\n\r\n", 431},
		{"too long a request line", "GET /" + strings.Repeat("b", 64<<10), 414},
		{"too many connection options", line + host + "Connection: " + strings.Repeat("a,", 33) + "\r\n\r\n", 431},
		{"TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n", 400},
	} {
		t.Run(test.name, func(t *testing.T) {
			events, err := both(t, newRequest, test.input, false)
			var e *Error
			if !errors.As(err, &e) || e.Status != test.status {
				t.Errorf("%q: events %q, error %v, want status %d", test.input, events, err, test.status)
			}
		})
	}
}

func TestErrorStays(t *testing.T) {
	p := newRequest()
	_, _, err := p.Next([]byte("GET\r\n"))
	if err == nil {
		t.Fatal("accepted")
	}
	n, _, again := p.Next([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
	if n != 0 || again != err {
		t.Errorf("took %d, %v after %v", n, again, err)
	}
	if _, again := p.EOF(); again != err {
		t.Errorf("EOF: %v", again)
	}
	p.Reset()
	if got, err := run(p, "GET / HTTP/1.0\r\n\r\n", 100, false); err != nil || len(got) != 2 {
		t.Errorf("after Reset: %q, %v", got, err)
	}
}

func TestResponses(t *testing.T) {
	for _, test := range []struct {
		name, methods, input string
		want                 []string
	}{
		{
			"length", "GET GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nDate: now\r\n\r\nokHTTP/1.1 404 \r\nContent-Length: 0\r\n\r\n",
			[]string{
				"head HTTP/1.1 200 [content-length: 2] [date: now] length=2", "data ok", "end",
				"head HTTP/1.1 404 [content-length: 0] length=0 end", "end", "EOF",
			},
		},
		{
			"no reason, chunked, trailers", "GET", "HTTP/1.1 200\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\na: b\r\n\r\n",
			[]string{"head HTTP/1.1 200 length=-1", "data ok", "trailers [a: b]", "end", "EOF"},
		},
		{
			"until close", "GET", "HTTP/1.1 200 OK\r\n\r\nabc",
			[]string{"head HTTP/1.1 200 length=-1 close", "data abc", "end"},
		},
		{
			"HTTP/1.0", "GET", "HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\na",
			[]string{"head HTTP/1.0 200 [content-length: 1] length=1 close", "data a", "end", "EOF"},
		},
		{
			"head", "HEAD GET", "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nHTTP/1.1 304 Not Modified\r\nContent-Length: 98\r\n\r\n",
			[]string{
				"head HTTP/1.1 200 [content-length: 99] length=99 end", "end",
				"head HTTP/1.1 304 [content-length: 98] length=98 end", "end", "EOF",
			},
		},
		{
			"head of chunks", "HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
			[]string{"head HTTP/1.1 200 length=-1 end", "end", "EOF"},
		},
		{
			"no content", "DELETE", "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
			[]string{"head HTTP/1.1 204 length=-1 end", "end", "EOF"},
		},
		{
			"interim", "POST", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
			[]string{
				"head HTTP/1.1 100 length=-1 end", "end", "head HTTP/1.1 103 [link: </a>] length=-1 end", "end",
				"head HTTP/1.1 200 [content-length: 0] length=0 end close", "end", "EOF",
			},
		},
		{
			"switch", "GET", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n\x81\x05hello",
			[]string{"head HTTP/1.1 101 upgrade=websocket length=-1", "data \x81\x05hello", "end"},
		},
		{
			"tunnel", "CONNECT", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcdef",
			[]string{"head HTTP/1.1 200 length=-1", "data abcdef", "end"},
		},
		{
			"tunnel refused", "CONNECT", "HTTP/1.1 403 Forbidden\r\nContent-Length: 3\r\n\r\nabc",
			[]string{"head HTTP/1.1 403 [content-length: 3] length=3", "data abc", "end", "EOF"},
		},
		{
			"upgrade required", "GET", "HTTP/1.1 426 Upgrade Required\r\nUpgrade: foo/2\r\nConnection: upgrade\r\nContent-Length: 0\r\n\r\n",
			[]string{"head HTTP/1.1 426 [content-length: 0] upgrade=foo/2 length=0 end", "end", "EOF"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := both(t, func() *Parser {
				p := NewResponseParser(Limits{})
				for m := range strings.FieldsSeq(test.methods) {
					p.ExpectResponseTo([]byte(m))
				}
				return p
			}, test.input, true)
			if errors.Is(err, io.EOF) {
				got = append(got, "EOF")
			} else if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("got  %q\nwant %q", got, test.want)
			}
		})
	}
}

func TestRefusedResponses(t *testing.T) {
	for name, input := range map[string]string{
		"both framings":            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
		"other coding":             "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
		"coding in HTTP/1.0":       "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
		"short status":             "HTTP/1.1 20 OK\r\n\r\n",
		"status below 100":         "HTTP/1.1 099 OK\r\n\r\n",
		"status glued":             "HTTP/1.1 200OK\r\n\r\n",
		"other version":            "HTTP/2.0 200 OK\r\n\r\n",
		"not HTTP":                 "SSH-2.0-OpenSSH_9.2\r\n",
		"control in the reason":    "HTTP/1.1 200 O\x01K\r\n\r\n",
		"empty line before":        "\r\nHTTP/1.1 200 OK\r\n\r\n",
		"content of 204":           "HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\nabc",
		"content of 100":           "HTTP/1.1 100 Continue\r\nContent-Length: 3\r\n\r\nabc",
		"chunks of 204":            "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"switch to nothing":        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
		"switch not nominated":     "HTTP/1.1 101 Switching Protocols\r\nUpgrade: a\r\n\r\n",
		"endless interim":          strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 17),
		"second response":          "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\n",
		"body cut":                 "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab",
		"chunks cut":               "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
		"last chunk cut":           "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
		"head cut":                 "HTTP/1.1 200 OK\r\nContent-Le",
		"negative length":          "HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\n",
		"connection length":        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: content-length\r\n\r\n",
		"different content-length": "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 1\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			events, err := both(t, func() *Parser {
				p := NewResponseParser(Limits{})
				p.ExpectResponseTo([]byte("GET"))
				return p
			}, input, true)
			var e *Error
			if !errors.As(err, &e) || e.Status != 502 {
				t.Errorf("events %q, error %v", events, err)
			}
		})
	}
}

func TestUpgradeOfRequestParser(t *testing.T) {
	p := newRequest()
	buf := []byte("CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\n\r\nnot HTTP\n")
	n, ev, err := p.Next(buf)
	if ev.Kind != Head || err != nil {
		t.Fatal(ev, err)
	}
	buf = buf[n:]
	if p.Upgraded() {
		t.Error("upgraded before Upgrade")
	}
	p.Upgrade()
	n, ev, err = p.Next(buf)
	if ev.Kind != Data || string(ev.Data) != "not HTTP\n" || n != len(buf) || err != nil || !p.Upgraded() {
		t.Errorf("%d %v %q %v", n, ev.Kind, ev.Data, err)
	}
	if ev, err := p.EOF(); ev.Kind != End || err != nil {
		t.Error(ev, err)
	}
}

// A filter may change the head; what the connection does next was decided before.
func TestHeadIsTheCallers(t *testing.T) {
	p := newRequest()
	buf := []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\nGET /3")
	for _, path := range []string{"/", "/2"} {
		n, ev, err := p.Next(buf)
		if ev.Kind != Head || err != nil || string(p.Head().Path) != path {
			t.Fatal(ev.Kind, err)
		}
		buf = buf[n:]
		p.Head().Close = !p.Head().Close
		if _, ev, err := p.Next(buf); ev.Kind != End || err != nil {
			t.Fatal(ev.Kind, err)
		}
	}
	if n, ev, err := p.Next(buf); n != len(buf) || ev.Kind != NeedMore || err != nil {
		t.Error(n, ev.Kind, err)
	}
}

func TestIdle(t *testing.T) {
	p := NewResponseParser(Limits{})
	step := func(want bool) {
		t.Helper()
		if p.Idle() != want {
			t.Errorf("Idle is %v", !want)
		}
	}
	step(true)
	p.ExpectResponseTo([]byte("GET"))
	step(false)
	if _, err := run(p, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 1000, false); err != nil {
		t.Fatal(err)
	}
	step(true)
	q := newRequest()
	if _, _, err := q.Next([]byte("G")); err != nil || q.Idle() {
		t.Error("idle in the middle of a head", err)
	}
}
