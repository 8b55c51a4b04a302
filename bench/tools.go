package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// tools are what this program does when it is started as a client, a server or a
// peer of a measurement.
var tools = map[string]func(args []string) error{
	"reverse-proxy": reverseProxy,
	"tcp-server":    tcpServer,
	"ping-pong":     pingPong,
	"bulk":          bulk,
	"connect":       connect,
	"route-changes": routeChanges,
}

var errArguments = errors.New("wrong arguments")

// reverseProxy is Go's own: LISTEN BACKEND.
func reverseProxy(args []string) error {
	if len(args) != 2 {
		return errArguments
	}
	p := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: args[1]})
	p.Transport = &http.Transport{MaxIdleConnsPerHost: 1024, DisableCompression: true}
	return http.ListenAndServe(args[0], p)
}

// A connection to tcpServer says by its first byte what it wants.
const (
	wantEcho = 'e' // everything back, that byte included
	wantBulk = 'b' // bytes without end
)

func tcpServer(args []string) error {
	if len(args) != 1 {
		return errArguments
	}
	l, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go serveTCP(c)
	}
}

func serveTCP(c net.Conn) {
	defer c.Close()
	buf := make([]byte, 4<<10)
	n, err := c.Read(buf)
	if err != nil {
		return
	}
	if buf[0] == wantBulk {
		chunk := make([]byte, 256<<10)
		for err == nil {
			_, err = c.Write(chunk)
		}
		return
	}
	for err == nil {
		if _, err = c.Write(buf[:n]); err == nil {
			n, err = c.Read(buf)
		}
	}
}

// targetFor parses TARGET DURATION.
func targetFor(args []string) (string, time.Time, error) {
	if len(args) != 2 {
		return "", time.Time{}, errArguments
	}
	d, err := time.ParseDuration(args[1])
	return args[0], time.Now().Add(d), err
}

// parallel runs f in n goroutines and prints the sum of what they did.
func parallel(n int, f func() (float64, error)) error {
	var wg sync.WaitGroup
	var mu sync.Mutex
	sum := 0.0
	var failed error
	for range n {
		wg.Go(func() {
			did, err := f()
			mu.Lock()
			defer mu.Unlock()
			sum += did
			if err != nil {
				failed = err
			}
		})
	}
	wg.Wait()
	if failed != nil {
		return failed
	}
	_, err := fmt.Println(sum)
	return err
}

// pingPong sends 1 KB and waits for it to come back, on 32 connections.
func pingPong(args []string) error {
	target, end, err := targetFor(args)
	if err != nil {
		return err
	}
	return parallel(32, func() (float64, error) {
		c, err := net.Dial("tcp", target)
		if err != nil {
			return 0, err
		}
		defer c.Close()
		message, answer := make([]byte, 1024), make([]byte, 1024)
		message[0] = wantEcho
		did := 0.0
		for time.Now().Before(end) {
			if _, err := c.Write(message); err != nil {
				return did, err
			}
			if _, err := io.ReadFull(c, answer); err != nil {
				return did, err
			}
			did++
		}
		return did, nil
	})
}

// bulk reads as much as it can on 4 connections, in GB.
func bulk(args []string) error {
	target, end, err := targetFor(args)
	if err != nil {
		return err
	}
	return parallel(4, func() (float64, error) {
		c, err := net.Dial("tcp", target)
		if err != nil {
			return 0, err
		}
		defer c.Close()
		if _, err := c.Write([]byte{wantBulk}); err != nil {
			return 0, err
		}
		buf := make([]byte, 256<<10)
		did := 0
		for time.Now().Before(end) {
			n, err := c.Read(buf)
			if err != nil {
				return 0, err
			}
			did += n
		}
		return float64(did) / 1e9, nil
	})
}

// connect connects, sends a byte, reads one and closes, one connection at a time.
func connect(args []string) error {
	target, end, err := targetFor(args)
	if err != nil {
		return err
	}
	// Names are looked up once: what is measured is the connect.
	addr, err := net.ResolveTCPAddr("tcp4", target)
	if err != nil {
		return err
	}
	return parallel(1, func() (float64, error) {
		did := 0.0
		b := []byte{wantEcho}
		for time.Now().Before(end) {
			c, err := net.DialTCP("tcp4", nil, addr)
			if err != nil {
				return did, err
			}
			// No TIME_WAIT: the client would run out of ports.
			err = firstError(c.SetLinger(0), write(c, b), read(c, b), c.Close())
			if err != nil {
				return did, err
			}
			did++
		}
		return did, nil
	})
}

func write(c net.Conn, b []byte) error { _, err := c.Write(b); return err }
func read(c net.Conn, b []byte) error  { _, err := io.ReadFull(c, b); return err }

// routeChanges edits one route file after another and asks the Gateway until it
// answers as the file says: CONFIG-DIR ROUTES CHANGES ADDRESS. Other hosts are
// asked all the while.
func routeChanges(args []string) error {
	if len(args) != 4 {
		return errArguments
	}
	routes, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	changes, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	var result struct {
		Milliseconds     []float64
		Requests, Failed int
	}
	var requests, failed atomic.Int64
	ask := func(client *http.Client, route int) (string, error) {
		req, err := http.NewRequest(http.MethodGet, "http://"+args[3]+"/", nil)
		if err != nil {
			return "", err
		}
		req.Host = fmt.Sprintf("host-%d.example", route)
		requests.Add(1)
		resp, err := client.Do(req)
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		if err != nil {
			failed.Add(1)
			return "", err
		}
		if resp.StatusCode != http.StatusOK {
			failed.Add(1)
			return "", fmt.Errorf("host-%d: %s, %s", route, resp.Status, resp.Header.Get("X-Sluice-Reason"))
		}
		return resp.Header.Get("X-Version"), nil
	}
	prober := &http.Client{Transport: &http.Transport{}, Timeout: 10 * time.Second}
	if _, err := ask(prober, 0); err != nil {
		return err
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		other := &http.Client{Transport: &http.Transport{}, Timeout: 10 * time.Second}
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				if _, err := ask(other, i%routes); err != nil {
					fmt.Fprintln(os.Stderr, err)
				}
			}
		}
	})
	for i := range changes {
		n := rand.IntN(routes)
		want := strconv.Itoa(i + 1)
		path := filepath.Join(args[0], routeFile(n))
		began := time.Now()
		if err := os.WriteFile(path, []byte(routeYAML(n, i+1)), 0o644); err != nil {
			return err
		}
		for {
			got, err := ask(prober, n)
			if err == nil && got == want {
				break
			}
			if time.Since(began) > 10*time.Second {
				return fmt.Errorf("host-%d still answers as version %q, not %q (%w)", n, got, want, err)
			}
		}
		result.Milliseconds = append(result.Milliseconds, float64(time.Since(began).Microseconds())/1000)
		time.Sleep(time.Duration(rand.IntN(10)) * time.Millisecond) // no rhythm
	}
	close(stop)
	wg.Wait()
	result.Requests, result.Failed = int(requests.Load()), int(failed.Load())
	return json.NewEncoder(os.Stdout).Encode(result)
}
