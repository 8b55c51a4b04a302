package http2

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/sluice-mesh/sluice/l7proxy/message"
)

// check looks for what must hold of a Conn at any time.
func check(t *testing.T, c *Conn) {
	t.Helper()
	var held int64
	for id, s := range c.streams {
		if s.id != id || s.held < 0 || s.credit < 0 || s.peerEnded && s.weEnded {
			t.Fatalf("stream %d: %+v", id, s)
		}
		held += s.held
	}
	if c.recvWindow < 0 || c.recvWindow+c.credit+held != int64(c.cfg.ConnWindow) && c.err == nil && c.phase == inFrame {
		t.Fatalf("connection's window: %d open, %d credit, %d held of %d", c.recvWindow, c.credit, held, c.cfg.ConnWindow)
	}
	if c.server && len(c.streams) > c.cfg.MaxConcurrentStreams || len(c.arena) > 2*c.cfg.MaxHeaderListBytes || len(c.fields) > c.cfg.MaxFields {
		t.Fatalf("%d streams, %d bytes, %d fields", len(c.streams), len(c.arena), len(c.fields))
	}
}

func seeds(client bool) [][]byte {
	a := newPeer()
	a.hello(client)
	if client {
		a.head(1, false, append(postHead, "content-length: 5", "cookie: a=b", "cookie: c=d")...)
		must(a.WriteDataPadded(1, true, []byte("hello"), make([]byte, 3)))
		a.get(3)
		must(a.WriteRSTStream(3, http2.ErrCodeCancel))
		a.post(5)
		a.head(5, true, "a: b")
	} else {
		a.head(1, false, ":status: 103")
		a.head(1, false, ":status: 200", "content-length: 5")
		must(a.WriteData(1, true, []byte("hello")))
		a.head(3, true, ":status: 204")
		must(a.WriteGoAway(3, http2.ErrCodeNo, []byte("bye")))
	}
	b := newPeer()
	b.hello(client, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10}, http2.Setting{ID: http2.SettingMaxFrameSize, Val: 20000})
	must(b.WritePing(false, [8]byte{1}))
	must(b.WriteWindowUpdate(0, 100))
	must(b.WritePriority(1, http2.PriorityParam{StreamDep: 3}))
	must(b.WriteRawFrame(0x10, 0, 0, []byte("abc")))
	must(b.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x82}}))
	must(b.WriteContinuation(1, true, []byte{0x86, 0x84}))
	return [][]byte{a.Bytes(), b.Bytes()}
}

// fuzzConn: any bytes, whole or one by one, give the same events and the same answer, and answers that can be read.
func fuzzConn(t *testing.T, make func() *Conn, client bool, input []byte) {
	if len(input) > 4<<10 {
		return
	}
	var results [2]string
	for i, step := range []int{len(input) + 1, 1} {
		c := make()
		events, err := feed(c, input, step)
		check(t, c)
		out := said(t, c, client)
		if err != nil && !strings.HasPrefix(out[len(out)-1], "GOAWAY") {
			t.Fatalf("%v, but said %q", err, out)
		}
		results[i] = fmt.Sprintf("%q %v %q", events, err, out)
	}
	if results[0] != results[1] {
		t.Fatalf("whole        %s\nbyte by byte %s", results[0], results[1])
	}
}

func FuzzServer(f *testing.F) {
	for _, s := range seeds(true) {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		if !bytes.HasPrefix(input, []byte(preface)) {
			input = append([]byte(preface+"\x00\x00\x00\x04\x00\x00\x00\x00\x00"), input...)
		}
		fuzzConn(t, func() *Conn { return NewServer(small) }, false, input)
	})
}

func FuzzClient(f *testing.F) {
	for _, s := range seeds(false) {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		fuzzConn(t, func() *Conn {
			c := NewClient(Config{MaxHeaderListBytes: 4096, MaxIdleFrames: 50})
			for _, m := range []string{"GET", "HEAD", "CONNECT"} {
				_, err := c.OpenStream(&message.Head{Method: []byte(m), Authority: []byte("x:1"), Path: []byte("/"), ContentLength: -1}, m != "CONNECT")
				must(err)
			}
			return c
		}, true, input)
	})
}

// FuzzHead: a head that one of our engines sends means the same to x/net, and to the other engine.
func FuzzHead(f *testing.F) {
	f.Add("GET", "http", "x", "/", "a", "b", "cookie", "c=d", int64(-1))
	f.Add("POST", "https", "x:1", "/a?b", "content-type", "text/plain", "set-cookie", "\r\n", int64(7))
	f.Add("CONNECT", "", "x:1", "", "te", "trailers", "host", "y", int64(0))
	f.Fuzz(func(t *testing.T, method, scheme, authority, path, name1, value1, name2, value2 string, length int64) {
		c := NewClient(Config{})
		h := &message.Head{
			Method: []byte(method), Scheme: []byte(scheme), Authority: []byte(authority), Path: []byte(path), ContentLength: max(length, -1),
			Fields: []message.Field{field([]byte(name1), []byte(value1)), field([]byte(name2), []byte(value2))},
		}
		if _, err := c.OpenStream(h, h.ContentLength <= 0); err != nil {
			return
		}
		out := bytes.Clone(c.Out())
		fr := http2.NewFramer(io.Discard, bytes.NewReader(out[len(preface):]))
		fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
		var theirs []string
		for {
			fm, err := fr.ReadFrame()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatalf("x/net: %v", err)
			}
			if m, ok := fm.(*http2.MetaHeadersFrame); ok {
				for _, f := range m.RegularFields() {
					theirs = append(theirs, f.Name+": "+f.Value)
				}
				if m.PseudoValue("method") != method || m.PseudoValue("authority") != authority || m.PseudoValue("path") != path && method != "CONNECT" {
					t.Fatalf("x/net reads %v", m.Fields)
				}
			}
		}
		s := NewServer(Config{})
		buf := out
		for {
			n, ev, err := s.Next(buf)
			if err != nil {
				t.Fatal(err)
			}
			buf = buf[n:]
			if ev.Kind == Headers {
				break
			}
			if ev.Kind == NeedMore {
				// The one thing that only the reader can know to be wrong.
				if name1 == "expect" || name2 == "expect" {
					return
				}
				t.Fatalf("our server refuses %q, wrote %q", theirs, s.Out())
			}
		}
		got := s.Head()
		if string(got.Method) != method || string(got.Authority) != authority || string(got.Path) != path && method != "CONNECT" {
			t.Fatalf("%s", headText(got))
		}
		var ours []string
		for _, f := range got.Fields {
			ours = append(ours, string(f.Name)+": "+string(f.Value))
		}
		if name1 == "cookie" && name2 == "cookie" {
			return // joined
		}
		if !slices.Equal(ours, theirs) {
			t.Fatalf("ours %q, x/net %q", ours, theirs)
		}
	})
}
