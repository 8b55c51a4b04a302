package service_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/sluice-mesh/sluice/dataplane/internal/lab"
)

const quicProtocol = "name"

// serveQUIC answers each stream with name once the client has sent all.
func serveQUIC(t *testing.T, c *net.UDPConn, name string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	transport := &quic.Transport{Conn: c}
	l, err := transport.Listen(&tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{cert}, PrivateKey: key}}, NextProtos: []string{quicProtocol},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { transport.Close() })
	go func() {
		for {
			conn, err := l.Accept(context.Background())
			if err != nil {
				return
			}
			go func() {
				for {
					s, err := conn.AcceptStream(context.Background())
					if err != nil {
						return
					}
					if _, err := io.Copy(io.Discard, s); err == nil {
						io.WriteString(s, name)
					}
					s.Close()
				}
			}()
		}
	}()
}

// connectedConn is a connected UDP socket with which quic-go can work: send and recv
// instead of sendto, and recvmsg.
type connectedConn struct{ *net.UDPConn }

func (c connectedConn) WriteTo(b []byte, _ net.Addr) (int, error) { return c.Write(b) }

func (c connectedConn) WriteMsgUDP(b, oob []byte, _ *net.UDPAddr) (int, int, error) {
	return c.UDPConn.WriteMsgUDP(b, oob, nil)
}

// quicClient is a program that dials ADDR by QUIC on a socket that is "connected" or
// "unconnected". For each line of its input it opens a stream, sends 100,000 bytes and
// prints the answer and the peer's address; for the line "migrate" it moves the connection
// to another socket first.
var quicClient = lab.Child("quic", func(args []string) error {
	kind, addr := args[0], args[1]
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	open := func() (*quic.Transport, error) {
		if kind == "connected" {
			c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
			return &quic.Transport{Conn: connectedConn{c}}, err
		}
		network := "udp6"
		if to.Addr().Is4() {
			network = "udp4"
		}
		c, err := net.ListenUDP(network, nil)
		return &quic.Transport{Conn: c}, err
	}
	transport, err := open()
	if err != nil {
		return err
	}
	conn, err := transport.Dial(ctx, net.UDPAddrFromAddrPort(to), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{quicProtocol}}, nil)
	if err != nil {
		return err
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		if lines.Text() == "migrate" {
			other, err := open()
			if err != nil {
				return err
			}
			path, err := conn.AddPath(other)
			if err != nil {
				return err
			}
			if err := errors.Join(path.Probe(ctx), path.Switch()); err != nil {
				return fmt.Errorf("migrate: %w", err)
			}
		}
		s, err := conn.OpenStreamSync(ctx)
		if err != nil {
			return err
		}
		if _, err := s.Write(make([]byte, 100_000)); err != nil {
			return err
		}
		s.Close()
		name, err := io.ReadAll(s)
		if err != nil {
			return err
		}
		fmt.Printf("%s %s\n", name, conn.RemoteAddr())
	}
	return conn.CloseWithError(0, "")
})

// TestQUIC: a QUIC connection stays with the endpoint that it began with while others
// come and its socket is exchanged for another (RFC 9000 §9).
func TestQUIC(t *testing.T) {
	m := lab.NewMesh(t)
	p, b := m.Enrol(t, "client"), m.Enrol(t, "backend")
	endpoints := map[bool][]netip.AddrPort{}
	for _, a := range []netip.Addr{b.Addr4, b.Addr6} {
		for i := range 4 {
			addr := at(a, uint16(4430+i))
			serveQUIC(t, b.ListenPacket(t, addr), fmt.Sprint(i))
			endpoints[a.Is6()] = append(endpoints[a.Is6()], addr)
		}
	}
	for _, six := range []bool{false, true} {
		for _, kind := range []string{"connected", "unconnected", "connected, affinity", "unconnected, affinity"} {
			t.Run(fmt.Sprintf("%s, IPv6 %t", kind, six), func(t *testing.T) {
				vip := at(vipOf(1, six), 443)
				kind, _, affinity := strings.Cut(kind, ", affinity")
				apply := func(n int) {
					s := svc("quic", []netip.Addr{vip.Addr()}, udpPort(443, endpoints[six][:n]...))
					if affinity {
						s.AffinityTimeout = time.Hour
					}
					m.SetService(t, s)
				}
				apply(2)
				cmd := lab.ChildCommand(quicClient, kind, vip.String())
				in, err := cmd.StdinPipe()
				if err != nil {
					t.Fatal(err)
				}
				out, err := cmd.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				p.Start(t, cmd)
				lines := bufio.NewScanner(out)
				say := func(word string) string {
					t.Helper()
					if _, err := fmt.Fprintln(in, word); err != nil {
						t.Fatal(err)
					}
					if !lines.Scan() {
						t.Fatalf("%s: the client ended: %v", word, lines.Err())
					}
					return lines.Text()
				}
				first := say("ask")
				for _, step := range []struct {
					endpoints int
					word      string
				}{{4, "ask"}, {3, "ask"}, {4, "migrate"}, {2, "migrate"}} {
					if !affinity && step.word == "migrate" {
						// Its workload's affinity is a new socket's only way to the same endpoint.
						break
					}
					apply(step.endpoints)
					if got := say(step.word); got != first {
						t.Errorf("%s with %d endpoints: %q answers, %q did", step.word, step.endpoints, got, first)
					}
				}
				if got := first[2:]; got != vip.String() {
					t.Errorf("the client speaks with %s, want %s", got, vip)
				}
				in.Close()
				if err := cmd.Wait(); err != nil {
					t.Error(err)
				}
			})
		}
	}
}
