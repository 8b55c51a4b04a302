package detect

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
)

func TestDetect(t *testing.T) {
	long := strings.Repeat("a", MaxBytes)
	for _, test := range []struct {
		first   string
		want    Kind
		decided bool
	}{
		{"", Other, false},
		{"G", Other, false},
		{"GET ", Other, false},
		{"GET /", Other, false},
		{"GET /a HTTP/1.1\r", Other, false},
		{"GET /a HTTP/1.1\r\n", HTTP1, true},
		{"GET /a HTTP/1.1\nHost: x\n", HTTP1, true}, // the parser says what is wrong with it
		{"\r\nGET /a HTTP/1.1\r\n", HTTP1, true},
		{"\r", Other, false},
		{"\r\n", Other, false},
		{"M-SEARCH * HTTP/1.1\r\n", HTTP1, true},
		{"GET /a HTTP/9.9\r\n", HTTP1, true},
		{"GET http://x/ HTTP/1.0\r\n", HTTP1, true},
		{"CONNECT x:1 HTTP/1.1\r\n", HTTP1, true},
		{"CONNECT x", Other, false},
		{"GET /" + long, HTTP1, true},
		{"FOO /" + long, Other, true},
		{"GET ht", Other, false},
		{"GET ftp", Other, true},
		{"GET key\r\n", Other, true},  // Redis inline
		{"GET /key\r\n", Other, true}, // Redis inline with a path as the key
		{"get key\r\n", Other, true},  // memcached
		{"*1\r\n$4\r\nPING\r\n", Other, true},
		{"EHLO x.example\r\n", Other, true},
		{"SSH-2.0-OpenSSH_9.2\r\n", Other, true},
		{"QUIT\r\n", Other, true},
		{"QUIT", Other, false},
		{long, Other, true},
		{strings.Repeat("A", maxMethod), Other, false},
		{strings.Repeat("A", maxMethod+1), Other, true},
		{"GET /\x00", Other, true},
		{"\x00\x00\x00\x08\x04\xd2\x16\x2f", Other, true}, // PostgreSQL's SSLRequest
		{"P", Other, false},
		{"PRI * HTTP/2.0\r", Other, false},
		{"PRI * HTTP/2.0\r\n", HTTP2, true},
		{"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", HTTP2, true},
		{"PRIX * HTTP/1.1\r\n", HTTP1, true},
		{"POST / HTTP/1.1\r\n", HTTP1, true},
		{"\x16", Other, false},
		{"\x16\x03\x01\x00\x05", Other, false},
		{"\x16\x03\x01\x00\x05\x01", TLS, true},
		{"\x16\x03\x01\x00\x05\x02", Other, true},
		{"\x16\x02", Other, true},
		{"\x16\x03\x05", Other, true},
		{"\x16\x03\x01\x00\x00", Other, true},
		{"\x16\x03\x01\xff\x00", Other, true},
	} {
		k, decided := Detect([]byte(test.first))
		if k != test.want || decided != test.decided {
			t.Errorf("%.40q: %v %v, want %v %v", test.first, k, decided, test.want, test.decided)
		}
	}
}

// hello is what crypto/tls sends first.
func hello(t testing.TB, cfg *tls.Config) []byte {
	t.Helper()
	client, server := net.Pipe()
	defer server.Close()
	go func() {
		tls.Client(client, cfg).Handshake()
		client.Close()
	}()
	head := make([]byte, 5)
	if _, err := io.ReadFull(server, head); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, binary.BigEndian.Uint16(head[3:]))
	if _, err := io.ReadFull(server, body); err != nil {
		t.Fatal(err)
	}
	return append(head, body...)
}

// split spreads a record's content over records of at most size bytes.
func split(record []byte, size int) []byte {
	var out []byte
	for piece := range slices.Chunk(record[5:], size) {
		out = append(out, 22, 3, 1, byte(len(piece)>>8), byte(len(piece)))
		out = append(out, piece...)
	}
	return out
}

func TestClientHello(t *testing.T) {
	first := hello(t, &tls.Config{ServerName: "Shop.Example", NextProtos: []string{"h2", "http/1.1"}})
	check := func(first []byte) {
		t.Helper()
		if k, decided := Detect(first); k != TLS || !decided {
			t.Error(k, decided)
		}
		h, done, err := ParseClientHello(first)
		if err != nil || !done || h.ServerName != "shop.example" || !slices.Equal(h.Protocols, []string{"h2", "http/1.1"}) {
			t.Errorf("%+v %v %v", h, done, err)
		}
		for i := range first {
			if h, done, err := ParseClientHello(first[:i]); done || err != nil || h.ServerName != "" {
				t.Fatalf("%d bytes: %+v %v %v", i, h, done, err)
			}
		}
	}
	check(first)
	check(split(first, 200))
	check(split(first, len(first)-6))
	if _, _, err := ParseClientHello(split(first, 3)); !errors.Is(err, ErrClientHello) {
		t.Error("shredded hello:", err)
	}

	h, done, err := ParseClientHello(hello(t, &tls.Config{InsecureSkipVerify: true}))
	if err != nil || !done || h.ServerName != "" || h.Protocols != nil {
		t.Errorf("without names: %+v %v %v", h, done, err)
	}
}

func TestRefusedClientHello(t *testing.T) {
	// build makes a record from extensions.
	build := func(extensions ...string) []byte {
		all := strings.Join(extensions, "")
		body := "\x03\x03" + strings.Repeat("r", 32) + "\x00" + "\x00\x02\x13\x01" + "\x01\x00" +
			string([]byte{byte(len(all) >> 8), byte(len(all))}) + all
		message := "\x01\x00" + string([]byte{byte(len(body) >> 8), byte(len(body))}) + body
		return []byte("\x16\x03\x01" + string([]byte{byte(len(message) >> 8), byte(len(message))}) + message)
	}
	extension := func(kind byte, body string) string {
		return string([]byte{0, kind, byte(len(body) >> 8), byte(len(body))}) + body
	}
	name := func(s string) string {
		return extension(0, string([]byte{0, byte(len(s) + 3), 0, 0, byte(len(s))})+s)
	}
	if h, _, err := ParseClientHello(build(name("a.b"), extension(16, "\x00\x03\x02h2"))); err != nil || h.ServerName != "a.b" || !slices.Equal(h.Protocols, []string{"h2"}) {
		t.Fatalf("%+v %v", h, err)
	}
	for what, first := range map[string][]byte{
		"two names":          build(name("a.b"), name("a.b")),
		"empty name":         build(name("")),
		"final dot":          build(name("a.b.")),
		"name with a NUL":    build(name("a\x00b")),
		"name with a slash":  build(name("a/b")),
		"other name type":    build(extension(0, "\x00\x06\x01\x00\x03a.b")),
		"bytes after a name": build(extension(0, "\x00\x06\x00\x00\x03a.bx")),
		"name list too long": build(extension(0, "\x00\x07\x00\x00\x03a.b")),
		"empty protocol":     build(extension(16, "\x00\x01\x00")),
		"no protocol":        build(extension(16, "\x00\x00")),
		"two protocol lists": build(extension(16, "\x00\x03\x02h2"), extension(16, "\x00\x03\x02h2")),
		"cut extension":      build("\x00\x10\x00\x05h2"),
		"many protocols":     build(extension(16, "\x00\x42"+strings.Repeat("\x01a", 33))),
		"other record":       []byte("\x17\x03\x01\x00\x05\x01\x00\x00\x00\x00"),
		"other message":      []byte("\x16\x03\x01\x00\x05\x02\x00\x00\x00\x00"),
		"empty message":      []byte("\x16\x03\x01\x00\x04\x01\x00\x00\x00"),
		"huge message":       []byte("\x16\x03\x01\x40\x00\x01\x01\x00\x00\x00"),
	} {
		if h, done, err := ParseClientHello(first); !errors.Is(err, ErrClientHello) || !done || h.ServerName != "" {
			t.Errorf("%s: %+v %v %v", what, h, done, err)
		}
	}
}

// FuzzDetect: an answer that was decided does not change, and comes at MaxBytes at the latest; no prefix
// of a ClientHello means something else than the whole.
func FuzzDetect(f *testing.F) {
	for _, s := range []string{"GET / HTTP/1.1\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\r\nPOST http://x/ HTTP/1.0\r\n", "\x16\x03\x01\x00\x05\x01", "QUIT\r\n"} {
		f.Add([]byte(s))
	}
	f.Add(hello(f, &tls.Config{ServerName: "a.b", NextProtos: []string{"h2"}}))
	f.Fuzz(func(t *testing.T, first []byte) {
		k, decided := Detect(first)
		if !decided && (k != Other || len(first) >= MaxBytes) {
			t.Fatalf("%v undecided after %d bytes", k, len(first))
		}
		h, done, err := ParseClientHello(first)
		if !done && len(first) > MaxClientHello+16*5 {
			t.Fatalf("no ClientHello after %d bytes", len(first))
		}
		for i := range min(len(first), 300) {
			if k2, d2 := Detect(first[:i]); d2 && (!decided || k2 != k) {
				t.Fatalf("%d bytes: %v, whole: %v %v", i, k2, k, decided)
			}
			if h2, d2, err2 := ParseClientHello(first[:i]); d2 && (!done || (err == nil) != (err2 == nil) || h.ServerName != h2.ServerName) {
				t.Fatalf("%d bytes: %v %v, whole: %v %v", i, h2, err2, h, err)
			}
		}
	})
}
