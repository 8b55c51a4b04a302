package forward_test

import (
	"io"
	"net"
	"net/netip"
	"testing"
)

// BenchmarkRoundTrip is a byte there and back between two workloads of a node, directly and by way of
// the node's stack. On a busy machine count what it does in place of timing it:
//
//	go test -c ./dataplane/forward
//	perf stat -e net:net_dev_xmit,net:netif_receive_skb,irq:softirq_entry,fib:fib_table_lookup \
//	    ./forward.test -test.run '^$' -test.bench RoundTrip/directly -test.benchtime 20000x
func BenchmarkRoundTrip(b *testing.B) {
	for name, throughStack := range map[string]bool{"directly": false, "through-the-stack": true} {
		b.Run(name, func(b *testing.B) {
			bed := newBed(b)
			must(b, bed.Datapath.SetRedirectPeer(!throughStack))
			from, to := bed.add(b, "a"), bed.add(b, "b")
			var l net.Listener
			must(b, to.ns.Do(func() (err error) {
				l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(to.Addresses[0], 0)))
				return err
			}))
			defer l.Close()
			go func() {
				c, err := l.Accept()
				if err != nil {
					return
				}
				defer c.Close()
				one := make([]byte, 1)
				for {
					if _, err := io.ReadFull(c, one); err != nil {
						return
					}
					if _, err := c.Write(one); err != nil {
						return
					}
				}
			}()
			var c net.Conn
			must(b, from.ns.Do(func() (err error) {
				c, err = net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr))
				return err
			}))
			defer c.Close()
			one := make([]byte, 1)
			for b.Loop() {
				if _, err := c.Write(one); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(c, one); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
