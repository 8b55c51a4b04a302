package lab_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/sluice-mesh/sluice/lab"
)

// The addresses of the Gateway of these tests.
const (
	l4Edge4 = "198.51.100.20"
	l4Edge6 = "2001:db8:2::20"
)

// l4Config has all that a Gateway carries below HTTP, and TLS towards a backend.
const l4Config = `apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: l4, namespace: shop}
spec:
  gatewayClassName: sluice
  addresses: [{type: IPAddress, value: ` + l4Edge4 + `}, {type: IPAddress, value: "` + l4Edge6 + `"}]
  listeners:
  - {name: pass, port: 443, protocol: TLS, hostname: "*.pass.example", tls: {mode: Passthrough}}
  - {name: term, port: 443, protocol: TLS, hostname: term.example, tls: {mode: Terminate, certificateRefs: [{name: term-tls}]}}
  - {name: https, port: 443, protocol: HTTPS, hostname: https.example, tls: {certificateRefs: [{name: term-tls}]}}
  - {name: http, port: 80, protocol: HTTP}
  - {name: banner, port: 7002, protocol: TCP}
  - {name: udp, port: 7001, protocol: UDP}
---
apiVersion: v1
kind: Service
metadata: {name: l4, namespace: shop}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {app: web}
  ports:
  - {name: web, port: 8080, appProtocol: tcp}
  - {name: udp, port: 7001, protocol: UDP}
  - {name: banner, port: 7002}
---
apiVersion: v1
kind: Service
metadata: {name: secure, namespace: shop}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {app: secure}
  ports: [{name: https, port: 443, targetPort: 8443}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: secure-ca, namespace: shop}
data:
  ca.crt: |
CA
---
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: secure, namespace: shop}
spec:
  targetRefs: [{group: "", kind: Service, name: secure}]
  validation: {hostname: a.pass.example, caCertificateRefs: [{group: "", kind: ConfigMap, name: secure-ca}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: pass, namespace: shop}
spec:
  parentRefs: [{name: l4, sectionName: pass}]
  hostnames: [a.pass.example]
  rules: [{backendRefs: [{name: secure, port: 443}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: term, namespace: shop}
spec:
  parentRefs: [{name: l4, sectionName: term}]
  hostnames: [term.example]
  rules: [{backendRefs: [{name: l4, port: 8080}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: banner, namespace: shop}
spec:
  parentRefs: [{name: l4, sectionName: banner}]
  rules: [{backendRefs: [{name: l4, port: 7002}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: UDPRoute
metadata: {name: udp, namespace: shop}
spec:
  parentRefs: [{name: l4, sectionName: udp}]
  rules: [{backendRefs: [{name: l4, port: 7001}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: secure, namespace: shop}
spec:
  parentRefs: [{name: l4, sectionName: http}]
  hostnames: [secure.example]
  rules: [{backendRefs: [{name: secure, port: 443}]}]
`

// secretFor makes a certificate for hosts and returns its Secret as a manifest, and the
// files of the certificate and its key.
func (n *node) secretFor(t *testing.T, name string, hosts ...string) (manifest, certFile, keyFile string) {
	t.Helper()
	args := append([]string{"cert", "--secret", name, "-n", "shop", "--ca", n.ca(name)}, hosts...)
	out, err := n.Command(n.ctx, lab.Home, "app", args...).Output()
	if err != nil {
		t.Fatal(err, out.Stderr)
	}
	var secret struct {
		Data map[string]string `json:"data"`
	}
	if err := yaml.Unmarshal([]byte(out.Stdout), &secret); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, key := range []string{corev1.TLSCertKey, corev1.TLSPrivateKeyKey} {
		data, err := base64.StdEncoding.DecodeString(secret.Data[key])
		if err != nil {
			t.Fatal(err)
		}
		files[key] = filepath.Join(n.Dir(), name+"-"+key)
		if err := os.WriteFile(files[key], data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return out.Stdout, files[corev1.TLSCertKey], files[corev1.TLSPrivateKeyKey]
}

// TestGatewayL4 goes from YAML to bytes with programs that others wrote: OpenSSL's
// server and client, and curl.
func TestGatewayL4(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("no openssl")
	}
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("no curl")
	}
	n := shared
	term, _, _ := n.secretFor(t, "term-tls", "term.example", "https.example")
	_, cert, key := n.secretFor(t, "secure-tls", "a.pass.example")
	ctx, cancel := context.WithCancel(n.ctx)
	defer cancel()
	server, err := n.Workload(ctx, "shop", "secure", []string{"--label", "app=secure", "--port", "8443"},
		openssl, "s_server", "-accept", "8443", "-cert", cert, "-key", key, "-www", "-quiet").Start()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); <-server.Done }()
	ca, err := os.ReadFile(n.ca("secure-tls"))
	if err != nil {
		t.Fatal(err)
	}
	n.write(t, "l4-term.yaml", term)
	n.write(t, "l4.yaml", strings.Replace(l4Config, "CA\n", "    "+strings.ReplaceAll(strings.TrimSpace(string(ca)), "\n", "\n    ")+"\n", 1))

	outside := func(program string, args ...string) (string, error) {
		out, err := n.Command(n.ctx, lab.Outside, program, args...).Output()
		return out.Stdout + out.Stderr, err
	}
	for _, addr := range []string{l4Edge4, l4Edge6} {
		// Passthrough: the client sees the server's own certificate, which the Gateway does not have.
		target := "https://a.pass.example/"
		resolve := "a.pass.example:443:" + addr
		if strings.Contains(addr, ":") {
			resolve = "a.pass.example:443:[" + addr + "]"
		}
		eventually(t, func() error {
			text, err := outside(curl, "-sS", "--http1.1", "--max-time", "10", "--cacert", n.ca("secure-tls"), "--resolve", resolve, target)
			if err == nil && !strings.Contains(text, "s_server") {
				err = errors.New("another answer")
			}
			if err != nil {
				return fmt.Errorf("passthrough by %s: %w: %q", addr, err, text)
			}
			return nil
		})
		// Terminated: the client verifies the Gateway, and its bytes reach the server as they are,
		// without what is said of HTTP clients.
		text, err := outside(curl, "-sS", "--http1.1", "--max-time", "10", "--cacert", n.ca("term-tls"),
			"--resolve", strings.Replace(resolve, "a.pass.example", "term.example", 1), "https://term.example/")
		if err != nil || !strings.HasPrefix(text, "web-a GET / host=term.example ") || !strings.HasSuffix(strings.TrimSpace(text), " for= proto=") {
			t.Errorf("terminated by %s: %v, %q", addr, err, text)
		}
		// A name of the listener that no route is for, and none at all.
		for _, name := range []string{"b.pass.example", ""} {
			args := []string{"s_client", "-connect", net.JoinHostPort(addr, "443")}
			if name != "" {
				args = append(args, "-servername", name)
			} else {
				args = append(args, "-noservername")
			}
			if text, err := outside(openssl, args...); err == nil || strings.Contains(text, "BEGIN CERTIFICATE") {
				t.Errorf("%q by %s: %v, %s", name, addr, err, text)
			}
		}
		// The server speaks first.
		family := "4"
		if strings.Contains(addr, ":") {
			family = "6"
		}
		a := n.outside.must(t, call{Do: "raw", Network: "tcp" + family, Addr: net.JoinHostPort(addr, "7002"), Message: "hello"})
		if !strings.Contains(a.Text, "220 web-a") {
			t.Errorf("TCP by %s: %q", addr, a.Text)
		}
		// UDP: the answer comes from the Gateway's address.
		for _, unconnected := range []bool{false, true} {
			u := n.outside.must(t, call{Do: "raw", Network: "udp" + family, Addr: net.JoinHostPort(addr, "7001"), Message: "hello", Unconnected: unconnected})
			if !strings.HasPrefix(u.Text, "web-a hello peer=") || u.Peer != net.JoinHostPort(addr, "7001") {
				t.Errorf("UDP by %s: %q from %s", addr, u.Text, u.Peer)
			}
		}
		// HTTP to a backend behind TLS.
		h := n.outside.must(t, call{Do: "http", URL: "http://secure.example/", Resolve: net.JoinHostPort(addr, "80")})
		if h.Status != 200 || !strings.Contains(h.Text, "s_server") {
			t.Errorf("backend TLS by %s: %d %v %q", addr, h.Status, h.Header, h.Text)
		}
	}
	n.flow(t, func(r record) bool { return r.Reason == "no-chain" }, "--reason", "no-chain")
	// Another authority: the policy stays accepted, and the backend is not trusted.
	other, err := os.ReadFile(n.ca("term-tls"))
	if err != nil {
		t.Fatal(err)
	}
	n.write(t, "l4.yaml", strings.Replace(l4Config, "CA\n", "    "+strings.ReplaceAll(strings.TrimSpace(string(other)), "\n", "\n    ")+"\n", 1))
	eventually(t, func() error {
		h, err := n.outside.try(call{Do: "http", URL: "http://secure.example/", Resolve: l4Edge4 + ":80"})
		if err != nil {
			return err
		}
		if h.Status != 502 || h.Header.Get("X-Sluice-Reason") != "upstream-tls" {
			return fmt.Errorf("another authority: %d %v", h.Status, h.Header)
		}
		return nil
	})
	if list := n.sluice(t, "route", "list"); !strings.Contains(list, "TLSRoute") || !strings.Contains(list, "UDPRoute") {
		t.Errorf("route list:\n%s", list)
	}
}
