package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-mesh/sluice/lab"
)

// The ports of the peers, on the node's address.
const (
	nginxPort   = 8001
	haproxyPort = 8002
	reversePort = 8003
)

// peer starts a proxy in the node's network namespace, on the node's CPU and in a
// cgroup of its own, in front of backend (address:port). A program that is not
// installed is an error.
func startPeer(ctx context.Context, l *lab.Lab, name, backend string, tcp bool) (*contestant, error) {
	dir := filepath.Join(l.Dir(), name)
	cgroup := filepath.Join(l.Cgroup(), "peer-"+name)
	for _, d := range []string{dir, cgroup} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	c := &contestant{name: name, cgroups: []string{cgroup}}
	var cmd *lab.Command
	switch name {
	case "nginx":
		c.version = version("nginx", "-v")
		conf := fmt.Sprintf(nginxProxy, dir, backend, lab.NodeAddress, nginxPort)
		if err := os.WriteFile(filepath.Join(dir, "conf"), []byte(conf), 0o644); err != nil {
			return nil, err
		}
		cmd = l.Command(ctx, lab.Node, "/usr/sbin/nginx", "-p", dir, "-c", filepath.Join(dir, "conf"), "-e", filepath.Join(dir, "error.log"))
	case "haproxy":
		c.version = version("haproxy", "-v")
		mode, extra := "http", "http-reuse always"
		if tcp {
			mode, extra = "tcp", "option splice-auto"
		}
		conf := fmt.Sprintf(haproxyConf, mode, extra, lab.NodeAddress, haproxyPort, backend)
		if err := os.WriteFile(filepath.Join(dir, "conf"), []byte(conf), 0o644); err != nil {
			return nil, err
		}
		cmd = l.Command(ctx, lab.Node, "/usr/sbin/haproxy", "-db", "-f", filepath.Join(dir, "conf"))
	case "ReverseProxy":
		c.version = runtime.Version()
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		cmd = l.Command(ctx, lab.Node, self, "reverse-proxy", fmt.Sprintf("%s:%d", lab.NodeAddress, reversePort), backend)
		cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
	}
	fd, err := os.Open(cgroup)
	if err != nil {
		return nil, err
	}
	defer fd.Close()
	cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(fd.Fd())
	if err := pin(nodeCPU); err != nil {
		return nil, err
	}
	_, err = cmd.Start()
	return c, firstError(err, pin(clientCPU))
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

const nginxProxy = `daemon off; worker_processes 1; pid %[1]s/pid;
events { worker_connections 4096; }
http {
  access_log off; keepalive_requests 1000000000; client_body_temp_path %[1]s; proxy_temp_path %[1]s; fastcgi_temp_path %[1]s; uwsgi_temp_path %[1]s; scgi_temp_path %[1]s;
  upstream backend { server %[2]s; keepalive 256; keepalive_requests 1000000000; }
  server {
    listen %[3]s:%[4]d;
    location / { proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; }
  }
}
`

const haproxyConf = `global
  nbthread 1
defaults
  mode %s
  %s
  timeout client 60s
  timeout server 60s
  timeout connect 5s
listen l
  bind %s:%d
  server backend %s
`

// The server behind all HTTP contestants.
const nginxBackend = `daemon off; worker_processes 1; pid %[1]s/pid;
events { worker_connections 4096; }
http {
  access_log off; keepalive_requests 1000000000; client_body_temp_path %[1]s; proxy_temp_path %[1]s; fastcgi_temp_path %[1]s; uwsgi_temp_path %[1]s; scgi_temp_path %[1]s;
  server { listen 0.0.0.0:8080; listen [::]:8080; location / { return 200 "%[2]s"; } }
}
`

var versionNumber = regexp.MustCompile(`\d+\.\d+(\.\d+)?`)

func version(program, flag string) string {
	out, err := exec.Command(program, flag).CombinedOutput()
	if err != nil {
		return "unknown"
	}
	return versionNumber.FindString(string(out))
}

var requestsIn = regexp.MustCompile(`(\d+) requests in`)

// wrk loads a URL with 32 connections and returns how many requests were answered.
func wrk(ctx context.Context, d time.Duration, start func(args ...string) (lab.Output, error), url string) (float64, error) {
	seconds := strconv.Itoa(max(1, int(d.Seconds()+0.5)))
	out, err := start("-t", "1", "-c", "32", "-d", seconds+"s", url)
	if err != nil {
		return 0, fmt.Errorf("wrk: %w: %s", err, out.Stderr)
	}
	if strings.Contains(out.Stdout, "Non-2xx") || strings.Contains(out.Stdout, "Socket errors") {
		return 0, fmt.Errorf("%s failed:\n%s", url, out.Stdout)
	}
	m := requestsIn.FindStringSubmatch(out.Stdout)
	if m == nil {
		return 0, fmt.Errorf("wrk printed %q", out.Stdout)
	}
	return strconv.ParseFloat(m[1], 64)
}
