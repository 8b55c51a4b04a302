package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"

	"github.com/sluice-mesh/sluice/admin/loglevel"
	"github.com/sluice-mesh/sluice/l7proxy/accesslog"
	"github.com/sluice-mesh/sluice/l7proxy/trace"
	"github.com/sluice-mesh/sluice/mesh"
)

// settings are everything that a person can set. All processes of a node run
// with the same, which is why there is one struct.
type settings struct {
	Config           string         `json:"config,omitempty"`
	State            string         `json:"state"`
	RunDir           string         `json:"run-dir"`
	Cgroup           string         `json:"cgroup"`
	BPFFS            string         `json:"bpffs"`
	NodeName         string         `json:"node-name"`
	Zone             string         `json:"zone,omitempty"`
	PodCIDRs         []netip.Prefix `json:"pod-cidrs"`
	ServiceCIDRs     []netip.Prefix `json:"service-cidrs"`
	GatewayAddresses []netip.Prefix `json:"gateway-addresses,omitempty"`
	ClusterDomain    string         `json:"cluster-domain"`
	DNSUpstreams     []string       `json:"dns-upstreams,omitempty"`
	ProxyUser        int            `json:"proxy-user"`
	ProxyLoops       int            `json:"proxy-loops,omitempty"`
	LogLevel         string         `json:"log-level"`
	LogFormat        string         `json:"log-format"`
	AccessLog        string         `json:"access-log,omitempty"`
	AccessLogFormat  string         `json:"access-log-format"`
	AccessLogFields  []string       `json:"access-log-fields,omitempty"`
	AccessLogText    string         `json:"access-log-template,omitempty"`
	AccessLogStatus  int            `json:"access-log-min-status,omitempty"`
	AccessLogSlow    time.Duration  `json:"access-log-min-duration,omitempty"`
	TraceEndpoint    string         `json:"trace-endpoint,omitempty"`
	TraceProtocol    string         `json:"trace-protocol"`
	TraceSampling    string         `json:"trace-sampling"`
	AgentMetrics     string         `json:"agent-metrics"`
	ProxyMetrics     string         `json:"proxy-metrics"`
	Drain            time.Duration  `json:"drain"`
	AllowHostSysctl  bool           `json:"allow-host-sysctl,omitempty"`
	NodeStack        bool           `json:"node-stack,omitempty"`
}

// defaultSettings returns what holds for a node of which nothing is said.
func defaultSettings() settings {
	host, err := os.Hostname()
	if err != nil {
		host = "node"
	}
	s := settings{
		State: "/var/lib/sluice", RunDir: "/run/sluice", BPFFS: "/sys/fs/bpf", NodeName: host,
		PodCIDRs:      []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16"), netip.MustParsePrefix("fd77::/112")},
		ServiceCIDRs:  []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd96::/112")},
		ClusterDomain: "cluster.local", ProxyUser: 65532,
		LogLevel: "info", LogFormat: "text", AccessLogFormat: "json",
		TraceProtocol: "grpc", TraceSampling: "1",
		AgentMetrics: ":9962", ProxyMetrics: ":9964", Drain: 5 * time.Second,
	}
	if root, ok := cgroup2Mount(); ok {
		s.Cgroup = filepath.Join(root, "sluice")
	}
	return s
}

// flags binds the settings to flags. Lists are comma separated.
func (s *settings) flags(f *pflag.FlagSet) {
	f.StringVar(&s.State, "state", s.State, "folder for what survives a reboot: addresses given, last good configuration, statuses")
	f.StringVar(&s.RunDir, "run-dir", s.RunDir, "folder for sockets and what ends with the machine")
	f.StringVar(&s.Cgroup, "cgroup", s.Cgroup, "cgroup v2 folder for workloads and the node's own processes; made if absent")
	f.StringVar(&s.BPFFS, "bpffs", s.BPFFS, "bpffs for pinned programs and maps (in its folder sluice); mounted if it is none")
	f.StringVar(&s.NodeName, "node-name", s.NodeName, "name of this node")
	f.StringVar(&s.Zone, "zone", s.Zone, "topology zone of the node, for Services that prefer endpoints near; empty: none")
	prefixes(f, &s.PodCIDRs, "pod-cidrs", "pools of workloads' addresses, one of each family")
	prefixes(f, &s.ServiceCIDRs, "service-cidrs", "pools of Services' addresses, one of each family; the tenth address is the DNS service")
	prefixes(f, &s.GatewayAddresses, "gateway-addresses", "pools of addresses for Gateways that name none, one of each family")
	f.StringVar(&s.ClusterDomain, "cluster-domain", s.ClusterDomain, "suffix of Services' DNS names")
	f.StringSliceVar(&s.DNSUpstreams, "dns-upstreams", s.DNSUpstreams, "name servers (address:port) for other names; none: such names are refused")
	f.IntVar(&s.ProxyUser, "proxy-user", s.ProxyUser, "user and group id of the process that parses traffic")
	f.IntVar(&s.ProxyLoops, "proxy-loops", s.ProxyLoops, "event loops of the proxy; 0: one for each CPU")
	f.StringVar(&s.LogLevel, "log-level", s.LogLevel, "debug, info, warn or error")
	f.StringVar(&s.LogFormat, "log-format", s.LogFormat, "text or json")
	f.StringVar(&s.AccessLog, "access-log", s.AccessLog, "file for the access log, - for standard output; empty: none")
	f.StringVar(&s.AccessLogFormat, "access-log-format", s.AccessLogFormat, "json or text")
	f.StringSliceVar(&s.AccessLogFields, "access-log-fields", s.AccessLogFields, "what an entry of the access log says, in this order ("+strings.Join(accesslog.Fields(), ", ")+", or header.NAME of the request; what holds secrets is refused); empty: everything but path_only, duration_ms and headers")
	f.StringVar(&s.AccessLogText, "access-log-template", s.AccessLogText, "an entry of the access log in the format text, such as '{time} {method} {path_only} {status}'; {{ is a brace, - stands for what there is not")
	f.IntVar(&s.AccessLogStatus, "access-log-min-status", s.AccessLogStatus, "log requests with this status or a higher one; what failed in the proxy is always logged; 0: all")
	f.DurationVar(&s.AccessLogSlow, "access-log-min-duration", s.AccessLogSlow, "log requests and connections that took as long at least; with --access-log-min-status, either is enough; 0: all")
	f.StringVar(&s.TraceEndpoint, "trace-endpoint", s.TraceEndpoint, "OTLP receiver of traces, as a URL (http://127.0.0.1:4317, or https for TLS); empty: no spans, and trace context passes unchanged")
	f.StringVar(&s.TraceProtocol, "trace-protocol", s.TraceProtocol, "grpc or http: how OTLP is carried")
	f.StringVar(&s.TraceSampling, "trace-sampling", s.TraceSampling, "percentage of the requests without a caller's trace that start one; a route's annotation sluice.dev/trace-sampling wins, a caller's own decision is kept")
	f.StringVar(&s.AgentMetrics, "agent-metrics", s.AgentMetrics, "address of the agent's metrics; empty: none")
	f.StringVar(&s.ProxyMetrics, "proxy-metrics", s.ProxyMetrics, "address of the proxy's metrics; empty: none")
	f.DurationVar(&s.Drain, "drain", s.Drain, "how long connections may go on when the proxy stops")
	f.BoolVar(&s.AllowHostSysctl, "allow-host-sysctl", s.AllowHostSysctl, "turn on IP forwarding although this is the machine's own network namespace")
	f.BoolVar(&s.NodeStack, "node-stack", s.NodeStack, "have packets between workloads of this node pass its network stack (netfilter rules, captures) instead of going from one to the other directly")
}

// validate says which setting is wrong and what would be right.
func (s *settings) validate() error {
	var errs []error
	bad := func(flag, format string, args ...any) {
		errs = append(errs, fmt.Errorf("--%s: %s", flag, fmt.Sprintf(format, args...)))
	}
	for flag, v := range map[string]*string{"state": &s.State, "run-dir": &s.RunDir, "cgroup": &s.Cgroup, "bpffs": &s.BPFFS} {
		if *v == "" {
			bad(flag, "is needed")
			continue
		}
		abs, err := filepath.Abs(*v)
		if err != nil {
			bad(flag, "%v", err)
			continue
		}
		*v = abs
	}
	if root, ok := cgroup2Mount(); ok && s.Cgroup == filepath.Clean(root) {
		bad("cgroup", "%s is the root of the hierarchy; name a folder below it", s.Cgroup)
	}
	onePerFamily := func(flag string, prefixes []netip.Prefix) {
		v4, v6 := 0, 0
		for _, p := range prefixes {
			if p.Addr().Is4() {
				v4++
			} else {
				v6++
			}
		}
		if v4 > 1 || v6 > 1 {
			bad(flag, "at most one prefix of each family")
		}
	}
	onePerFamily("pod-cidrs", s.PodCIDRs)
	onePerFamily("service-cidrs", s.ServiceCIDRs)
	onePerFamily("gateway-addresses", s.GatewayAddresses)
	if len(s.PodCIDRs) == 0 {
		bad("pod-cidrs", "at least one prefix is needed")
	}
	if len(s.ServiceCIDRs) == 0 {
		bad("service-cidrs", "at least one prefix is needed")
	}
	for _, u := range s.DNSUpstreams {
		if _, err := netip.ParseAddrPort(u); err != nil {
			bad("dns-upstreams", "%q is not address:port", u)
		}
	}
	if _, err := loglevel.Parse(s.LogLevel); err != nil {
		bad("log-level", "%v", err)
	}
	if s.LogFormat != "text" && s.LogFormat != "json" {
		bad("log-format", "%q is neither text nor json", s.LogFormat)
	}
	if s.AccessLogFormat != "text" && s.AccessLogFormat != "json" {
		bad("access-log-format", "%q is neither text nor json", s.AccessLogFormat)
	}
	if err := s.accessLogOptions().Validate(); err != nil {
		bad("access-log-fields, -template, -min-status, -min-duration", "%v", err)
	}
	if s.TraceEndpoint != "" {
		if err := trace.ValidateEndpoint(s.TraceEndpoint, trace.Protocol(s.TraceProtocol)); err != nil {
			bad("trace-endpoint", "%v", err)
		}
	} else if p := trace.Protocol(s.TraceProtocol); p != trace.GRPC && p != trace.HTTP {
		bad("trace-protocol", "%q is neither grpc nor http", s.TraceProtocol)
	}
	if _, err := mesh.ParsePercentage(s.TraceSampling); err != nil {
		bad("trace-sampling", "%q: %v", s.TraceSampling, err)
	}
	if s.ProxyUser <= 0 {
		bad("proxy-user", "must not be root")
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	return nil
}

// load fills settings for a command: flags over environment over file.
func load(cmd *cobra.Command, file string) error {
	fromFile := map[string]any{}
	if file != "" {
		text, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("%w: --settings: %w", errUsage, err)
		}
		if err := yaml.UnmarshalStrict(text, &fromFile); err != nil {
			return fmt.Errorf("%w: --settings %s: %w", errUsage, file, err)
		}
	}
	var errs []error
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		value, given := fromFile[f.Name]
		delete(fromFile, f.Name)
		source := file
		if v, ok := os.LookupEnv("SLUICE_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))); ok {
			value, given, source = v, true, "the environment"
		}
		if f.Changed || !given || f.Name == "settings" {
			return
		}
		text := fmt.Sprint(value)
		if list, ok := value.([]any); ok {
			parts := make([]string, len(list))
			for i, v := range list {
				parts[i] = fmt.Sprint(v)
			}
			text = strings.Join(parts, ",")
		}
		if err := f.Value.Set(text); err != nil {
			errs = append(errs, fmt.Errorf("--%s from %s: %w", f.Name, source, err))
		}
	})
	for name := range fromFile {
		errs = append(errs, fmt.Errorf("%s: no setting is called %q", file, name))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	return nil
}

// prefixList is a comma separated list of prefixes as a flag.
type prefixList struct{ list *[]netip.Prefix }

func prefixes(f *pflag.FlagSet, list *[]netip.Prefix, name, usage string) {
	f.Var(prefixList{list}, name, usage)
}

func (p prefixList) Type() string { return "prefixes" }

func (p prefixList) String() string {
	if p.list == nil {
		return ""
	}
	parts := make([]string, len(*p.list))
	for i, prefix := range *p.list {
		parts[i] = prefix.String()
	}
	return strings.Join(parts, ",")
}

func (p prefixList) Set(text string) error {
	*p.list = nil
	for part := range strings.SplitSeq(text, ",") {
		if part == "" {
			continue
		}
		prefix, err := netip.ParsePrefix(strings.TrimSpace(part))
		if err != nil {
			return err
		}
		*p.list = append(*p.list, prefix.Masked())
	}
	return nil
}

// accessLogOptions are what the settings say of the entries of the access log.
func (s *settings) accessLogOptions() accesslog.Options {
	o := accesslog.Options{
		Format: accesslog.JSON, Fields: s.AccessLogFields, Template: s.AccessLogText,
		MinStatus: s.AccessLogStatus, MinDuration: s.AccessLogSlow,
	}
	if s.AccessLogFormat == "text" {
		o.Format = accesslog.Text
	}
	return o
}

// dns returns the addresses of the DNS service.
func (s *settings) dns() []netip.Addr {
	var out []netip.Addr
	for _, p := range s.ServiceCIDRs {
		a := p.Addr()
		for range 10 {
			a = a.Next()
		}
		out = append(out, a)
	}
	return out
}

func (s *settings) pool(v4 bool) netip.Prefix {
	for _, p := range s.PodCIDRs {
		if p.Addr().Is4() == v4 {
			return p
		}
	}
	return netip.Prefix{}
}

// The places in the run folder that processes meet at.
func (s *settings) xdsSocket() string     { return filepath.Join(s.RunDir, "xds.sock") }
func (s *settings) handoffSocket() string { return filepath.Join(s.RunDir, "handoff.sock") }
func (s *settings) flowSocket() string    { return filepath.Join(s.RunDir, "flows.sock") }
func (s *settings) netnsDir() string      { return filepath.Join(s.RunDir, "netns") }
func (s *settings) podsDir() string       { return filepath.Join(s.RunDir, "pods") }
func (s *settings) settingsFile() string  { return filepath.Join(s.RunDir, "settings.json") }
func (s *settings) proxyState() string    { return filepath.Join(s.State, "proxy") }
func (s *settings) pins() string          { return filepath.Join(s.BPFFS, "sluice") }
func (s *settings) nodeCgroup() string    { return filepath.Join(s.Cgroup, "node") }
func (s *settings) workloadsCgroup() string {
	return filepath.Join(s.Cgroup, "workloads")
}

// write saves the settings for the other processes of the node.
func (s *settings) write() error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	tmp := s.settingsFile() + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, s.settingsFile())
}

// readSettings reads what write saved.
func readSettings(r io.Reader) (*settings, error) {
	s := new(settings)
	d := json.NewDecoder(r)
	d.DisallowUnknownFields()
	if err := d.Decode(s); err != nil {
		return nil, fmt.Errorf("read settings: %w", err)
	}
	return s, s.validate()
}

// logger returns the process's root logger and its levels.
func (s *settings) logger(process string) (*slog.Logger, *loglevel.Levels, error) {
	level, err := loglevel.Parse(s.LogLevel)
	if err != nil {
		return nil, nil, err
	}
	levels := loglevel.New(level)
	opts := &slog.HandlerOptions{Level: slog.Level(-128)}
	var h slog.Handler = slog.NewTextHandler(os.Stderr, opts)
	if s.LogFormat == "json" {
		h = slog.NewJSONHandler(os.Stderr, opts)
	}
	return slog.New(levels.Handler(h)).With("process", process), levels, nil
}

// cgroup2Mount returns where the cgroup v2 hierarchy is mounted.
func cgroup2Mount() (string, bool) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", false
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			return f[1], true
		}
	}
	return "", false
}
