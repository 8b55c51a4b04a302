package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/sluice-mesh/sluice/lab"
)

// gatewayAddress is the one that the shop's Gateway names.
const gatewayAddress = "198.51.100.10"

// shop is the bookshop on a node. Only the main goroutine uses it.
type shop struct {
	*lab.Lab
	manifests string
	shoppers  int
}

func (s *shop) ca() string { return filepath.Join(s.Dir(), "ca.pem") }

// open starts the node on a copy of the manifests, and the shop's programs.
func (s *shop) open(ctx context.Context) error {
	began := time.Now()
	if err := s.Up(ctx, func(config string) error { return s.prepare(ctx, config) }); err != nil {
		return err
	}
	started := time.Since(began)
	if _, err := s.Command(ctx, lab.Outside, "app", "serve", "--name=bank", "--tcp="+lab.OutsideAddress+":9000").Start(); err != nil {
		return err
	}
	pods, err := s.pods()
	if err != nil {
		return err
	}
	for i := range pods {
		if err := s.startPod(ctx, &pods[i]); err != nil {
			return err
		}
	}
	fmt.Printf("A node in a network namespace of its own started in %.1f s; %d programs are its workloads.\n", started.Seconds(), len(pods))
	return nil
}

// prepare copies the manifests, because the story edits one, and adds a
// certificate, because private keys are not for repositories.
func (s *shop) prepare(ctx context.Context, config string) error {
	if err := os.CopyFS(config, os.DirFS(s.manifests)); err != nil {
		return fmt.Errorf("copy the manifests: %w", err)
	}
	secret, err := s.Command(ctx, lab.Home, "app", "cert", "--secret", "shop-tls", "-n", "bookshop", "--ca", s.ca(), "shop.example").Output()
	if err != nil {
		return fmt.Errorf("make a certificate: %w: %s", err, secret.Stderr)
	}
	return os.WriteFile(filepath.Join(config, "60-secret.yaml"), []byte(secret.Stdout), 0o600)
}

// pods returns the Pods of the manifests, in the order of files.
func (s *shop) pods() ([]corev1.Pod, error) {
	files, err := filepath.Glob(filepath.Join(s.ConfigDir(), "*.yaml"))
	if err != nil {
		return nil, err
	}
	var pods []corev1.Pod
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		for doc := range bytes.SplitSeq(text, []byte("\n---\n")) {
			var pod corev1.Pod
			if err := yaml.Unmarshal(doc, &pod); err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
			if pod.Kind == "Pod" {
				pods = append(pods, pod)
			}
		}
	}
	return pods, nil
}

// unprivileged are the flags of `sluice run` for programs that need no rights.
var unprivileged = []string{"--user", "65534:65534"}

// startPod does with `sluice run` what a kubelet does with a Pod.
func (s *shop) startPod(ctx context.Context, pod *corev1.Pod) error {
	flags := append([]string{"--service-account", pod.Spec.ServiceAccountName}, unprivileged...)
	for k, v := range pod.Labels {
		flags = append(flags, "--label", k+"="+v)
	}
	c := pod.Spec.Containers[0]
	for _, port := range c.Ports {
		spec := port.Name + "=" + strconv.Itoa(int(port.ContainerPort))
		if port.Protocol == corev1.ProtocolUDP {
			spec += "/udp"
		}
		flags = append(flags, "--port", spec)
	}
	_, err := s.Workload(ctx, pod.Namespace, pod.Name, flags, "app", c.Command[1:]...).Start()
	return err
}

// shopper returns a client of the bookshop as a workload of its own, and its name.
func (s *shop) shopper(ctx context.Context, args ...string) (string, *lab.Command) {
	s.shoppers++
	name := fmt.Sprintf("shopper-%d", s.shoppers)
	flags := append([]string{"--service-account", "shopper", "--label", "app=shopper"}, unprivileged...)
	return name, s.Workload(ctx, "bookshop", name, flags, "app", args...)
}

// buy runs a client and returns its name and what it counted.
func (s *shop) buy(ctx context.Context, args ...string) (string, *tally, error) {
	name, cmd := s.shopper(ctx, args...)
	out, err := cmd.Output()
	if err != nil {
		return name, nil, fmt.Errorf("%w: %s", err, strings.TrimSpace(out.Stderr))
	}
	t, err := parseTally(out.Stdout)
	return name, t, err
}

// tally is what the bookshop's clients print.
type tally struct {
	Requests            int
	ServedBy            map[string]int `json:"served_by"`
	Status, Errors      map[string]int
	Last, Local, Remote string
	Location            string
	Headers             map[string]string
}

func parseTally(text string) (*tally, error) {
	t := new(tally)
	if err := json.Unmarshal([]byte(text), t); err != nil {
		return nil, fmt.Errorf("the client printed %q: %w", text, err)
	}
	return t, nil
}

// all says whether every request got the status.
func (t *tally) all(status string) error {
	if t.Requests == 0 || t.Status[status] != t.Requests {
		return fmt.Errorf("%d requests, by status %v, errors %v; want all %s", t.Requests, t.Status, t.Errors, status)
	}
	return nil
}
