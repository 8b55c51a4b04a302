package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

type getter struct {
	count    int
	headers  []string
	duration time.Duration
	ca       string
	resolve  string
	timeout  time.Duration
	wait     time.Duration
	fresh    bool
	raw      bool
}

func getCommand() *cobra.Command {
	var g getter
	cmd := &cobra.Command{
		Use:   "get URL",
		Short: "Send HTTP requests over kept-alive connections and count who answered",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := g.run(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if g.raw {
				_, err := fmt.Fprintln(cmd.OutOrStdout(), t.Last)
				return errors.Join(err, failures(t))
			}
			return t.print(cmd)
		},
	}
	f := cmd.Flags()
	f.IntVarP(&g.count, "count", "n", 1, "how many requests")
	f.StringArrayVarP(&g.headers, "header", "H", nil, "a header field, as 'name: value'")
	f.DurationVar(&g.duration, "for", 0, "go on for this long in place of a count")
	f.StringVar(&g.ca, "ca", "", "PEM file of the CA to trust")
	f.StringVar(&g.resolve, "resolve", "", "connect to this address whatever the URL's host is")
	f.DurationVar(&g.timeout, "timeout", 20*time.Second, "limit of one request")
	f.DurationVar(&g.wait, "wait", 0, "repeat the first request for so long until it gets an answer below 500")
	f.BoolVar(&g.fresh, "new-connections", false, "a new connection for each request")
	f.BoolVar(&g.raw, "raw", false, "print the body of the last answer only")
	return cmd
}

func failures(t *Tally) error {
	if t.Status["error"] > 0 {
		return fmt.Errorf("%v", t.Errors)
	}
	return nil
}

// waitRound is the pause between the attempts of --wait.
const waitRound = 50 * time.Millisecond

// await repeats try until it succeeds or the time is over.
func await(ctx context.Context, limit time.Duration, try func() bool) {
	for end := time.Now().Add(limit); limit > 0 && ctx.Err() == nil && time.Now().Before(end) && !try(); {
		time.Sleep(waitRound)
	}
}

func (g *getter) run(ctx context.Context, url string) (*Tally, error) {
	t := newTally()
	transport := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}}
	transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if g.resolve != "" {
			addr = g.resolve
		}
		var d net.Dialer
		c, err := d.DialContext(ctx, network, addr)
		if err == nil {
			t.Local, t.Remote = c.LocalAddr().String(), c.RemoteAddr().String()
		}
		return c, err
	}
	if g.ca != "" {
		pem, err := os.ReadFile(g.ca)
		if err != nil {
			return nil, err
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate", g.ca)
		}
		transport.TLSClientConfig.RootCAs = pool
	}
	client := &http.Client{
		Transport:     transport,
		Timeout:       g.timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	transport.DisableKeepAlives = g.fresh
	await(ctx, g.wait, func() bool {
		first := newTally()
		g.one(ctx, client, url, first)
		return first.Status["error"] == 0 && first.Status["503"] == 0 && first.Status["502"] == 0
	})
	end := time.Now().Add(g.duration)
	for i := 0; ctx.Err() == nil && (g.duration == 0 && i < g.count || g.duration > 0 && time.Now().Before(end)); i++ {
		g.one(ctx, client, url, t)
		if i == 0 && g.duration > 0 {
			fmt.Fprintln(os.Stderr, "requests are running")
		}
	}
	return t, nil
}

func (g *getter) one(ctx context.Context, client *http.Client, url string, t *Tally) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.fail(err)
		return
	}
	for _, h := range g.headers {
		name, value, _ := strings.Cut(h, ":")
		req.Header.Add(name, strings.TrimSpace(value))
	}
	resp, err := client.Do(req)
	if err != nil {
		t.fail(rootCause(err))
		return
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.fail(err)
		return
	}
	t.Requests++
	t.Status[fmt.Sprint(resp.StatusCode)]++
	if by := resp.Header.Get("X-Served-By"); by != "" {
		t.ServedBy[by]++
	}
	t.Last, t.Location = strings.TrimSpace(string(body)), resp.Header.Get("Location")
	t.Headers = map[string]any{"proto": resp.Proto}
	for name, values := range resp.Header {
		t.Headers[strings.ToLower(name)] = strings.Join(values, ", ")
	}
}

// rootCause returns the system call's own error, which names no address that
// differs from run to run.
func rootCause(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}

func grpcCommand() *cobra.Command {
	var count int
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "grpc HOST:PORT",
		Short: "Make gRPC calls over one connection and count who answered",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			t := newTally()
			c, err := grpc.NewClient(args[0], grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				return err
			}
			defer c.Close()
			await(cmd.Context(), wait, func() bool {
				ctx, cancel := context.WithTimeout(cmd.Context(), time.Second)
				defer cancel()
				_, err := grpc_health_v1.NewHealthClient(c).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
				return err == nil
			})
			for range count {
				ctx, cancel := context.WithTimeout(cmd.Context(), 20*time.Second)
				var header metadata.MD
				_, err := grpc_health_v1.NewHealthClient(c).Check(ctx, &grpc_health_v1.HealthCheckRequest{}, grpc.Header(&header))
				cancel()
				t.Requests++
				t.Status[status.Code(err).String()]++
				if err != nil {
					t.Errors[status.Convert(err).Message()]++
				}
				for _, by := range header.Get("x-served-by") {
					t.ServedBy[by]++
				}
			}
			return t.print(cmd)
		},
	}
	cmd.Flags().IntVarP(&count, "count", "n", 1, "how many calls")
	cmd.Flags().DurationVar(&wait, "wait", 0, "repeat a first call for so long until it succeeds")
	return cmd
}

// lineCommand sends one line or datagram and prints the answer.
func lineCommand(network, short string) *cobra.Command {
	var count int
	var wait time.Duration
	var self bool
	cmd := &cobra.Command{
		Use:   network + " HOST:PORT MESSAGE",
		Short: short,
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			t := newTally()
			if self {
				own, err := ownAddress()
				if err != nil {
					return err
				}
				args[0] = own + args[0]
			}
			await(cmd.Context(), wait, func() bool {
				_, err := exchange(cmd.Context(), network, args[0], args[1], t)
				return err == nil
			})
			for range count {
				answer, err := exchange(cmd.Context(), network, args[0], args[1], t)
				if err != nil {
					t.fail(rootCause(err))
					continue
				}
				t.Requests++
				t.Status["ok"]++
				by, _, _ := strings.Cut(answer, " ")
				t.ServedBy[by]++
				t.Last = answer
			}
			return t.print(cmd)
		},
	}
	f := cmd.Flags()
	f.IntVarP(&count, "count", "n", 1, "how many times")
	f.DurationVar(&wait, "wait", 0, "repeat a first attempt for so long until it succeeds")
	f.BoolVar(&self, "self", false, "dial an address of this machine: HOST is left out")
	return cmd
}

// ownAddress returns the first IPv4 address that is not loopback.
func ownAddress() (string, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return "", err
	}
	for _, a := range addrs {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() != nil && !ip.IP.IsLoopback() {
			return ip.IP.String(), nil
		}
	}
	return "", errors.New("this machine has no IPv4 address")
}

func tcpCommand() *cobra.Command {
	return lineCommand("tcp", "Send a line over TCP and print the answer")
}

func udpCommand() *cobra.Command {
	return lineCommand("udp", "Send a datagram and print the answer")
}

func exchange(ctx context.Context, network, addr, message string, t *Tally) (string, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return "", err
	}
	t.Local, t.Remote = c.LocalAddr().String(), c.RemoteAddr().String()
	if network == "udp" {
		if _, err := io.WriteString(c, message); err != nil {
			return "", err
		}
		buf := make([]byte, 64<<10)
		n, err := c.Read(buf)
		return string(buf[:n]), err
	}
	if _, err := io.WriteString(c, message+"\n"); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(line), err
}
