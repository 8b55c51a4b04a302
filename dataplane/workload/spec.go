package workload

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/sluice-mesh/sluice/mesh"
)

// Spec is what a workload is asked to be. It is immutable once added.
type Spec struct {
	Name mesh.Name `json:"name"`
	// ServiceAccount is "default" when empty.
	ServiceAccount string            `json:"serviceAccount,omitempty"`
	Labels         map[string]string `json:"labels,omitempty"`
	Annotations    map[string]string `json:"annotations,omitempty"`
	// Ports are what the workload says it listens on. They name target ports of
	// Services and open nothing.
	Ports []ContainerPort `json:"ports,omitempty"`
	// Command is shown in the workload's Pod; the registry starts nothing.
	Command []string `json:"command,omitempty"`
}

// ContainerPort is a port that a Service may refer to by name.
type ContainerPort struct {
	Name     string        `json:"name,omitempty"`
	Port     uint16        `json:"port"`
	Protocol mesh.Protocol `json:"protocol,omitempty"` // TCP when zero
}

// maxNameBytes bounds the name of a workload: with the longest namespace (63) and
// what is put around them both must fit a file name (255 bytes).
const maxNameBytes = 180

// ErrInvalid says that a Spec breaks the rules.
var ErrInvalid = errors.New("invalid workload")

// Validate checks names, labels and ports by the rules of Kubernetes. The error
// wraps ErrInvalid and names all that is wrong.
func (s *Spec) Validate() error {
	var errs []error
	if !isDNSLabel(s.Name.Namespace) {
		errs = append(errs, fmt.Errorf("namespace %q is not an RFC 1123 label", s.Name.Namespace))
	}
	if !isDNSSubdomain(s.Name.Name) || len(s.Name.Name) > maxNameBytes {
		errs = append(errs, fmt.Errorf("name %q is not an RFC 1123 subdomain of at most %d bytes", s.Name.Name, maxNameBytes))
	}
	if s.ServiceAccount != "" && (!isDNSSubdomain(s.ServiceAccount) || len(s.ServiceAccount) > 253) {
		errs = append(errs, fmt.Errorf("service account %q is not an RFC 1123 subdomain", s.ServiceAccount))
	}
	for key, value := range s.Labels {
		if !isQualifiedName(key) {
			errs = append(errs, fmt.Errorf("label key %q is not a qualified name", key))
		}
		if value != "" && !isLabelValue(value) {
			errs = append(errs, fmt.Errorf("label %s=%q: the value is not a label value", key, value))
		}
	}
	for key := range s.Annotations {
		if !isQualifiedName(key) {
			errs = append(errs, fmt.Errorf("annotation key %q is not a qualified name", key))
		}
	}
	if _, err := s.Inbound(); err != nil {
		errs = append(errs, err)
	}
	names := make(map[string]bool)
	for _, port := range s.Ports {
		if port.Port == 0 {
			errs = append(errs, errors.New("container port 0"))
		}
		if port.Protocol != 0 && port.Protocol != mesh.ProtocolTCP && port.Protocol != mesh.ProtocolUDP {
			errs = append(errs, fmt.Errorf("container port %d: protocol %s", port.Port, port.Protocol))
		}
		if port.Name == "" {
			continue
		}
		if !isDNSLabel(port.Name) || len(port.Name) > 15 {
			errs = append(errs, fmt.Errorf("container port name %q is not an IANA service name", port.Name))
		}
		if names[port.Name] {
			errs = append(errs, fmt.Errorf("container port name %q is used twice", port.Name))
		}
		names[port.Name] = true
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%w %s: %w", ErrInvalid, s.Name, err)
	}
	return nil
}

// equal reports whether both ask for the same workload.
func (s *Spec) equal(o *Spec) bool {
	return s.Name == o.Name && s.ServiceAccount == o.ServiceAccount && maps.Equal(s.Labels, o.Labels) &&
		maps.Equal(s.Annotations, o.Annotations) && slices.Equal(s.Ports, o.Ports) && slices.Equal(s.Command, o.Command)
}

// clone returns a copy that shares nothing, with the defaults filled in.
func (s *Spec) clone() Spec {
	out := *s
	out.Labels, out.Annotations = maps.Clone(s.Labels), maps.Clone(s.Annotations)
	out.Ports, out.Command = slices.Clone(s.Ports), slices.Clone(s.Command)
	if out.ServiceAccount == "" {
		out.ServiceAccount = "default"
	}
	for i := range out.Ports {
		if out.Ports[i].Protocol == 0 {
			out.Ports[i].Protocol = mesh.ProtocolTCP
		}
	}
	return out
}

// isDNSLabel reports whether s is a label (RFC 1123 §2.1): at most 63 lower-case
// letters, digits and inner hyphens.
func isDNSLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

func isDNSSubdomain(s string) bool {
	for label := range strings.SplitSeq(s, ".") {
		if !isDNSLabel(label) {
			return false
		}
	}
	return true
}

// isLabelValue reports whether s is a non-empty label value: at most 63 letters,
// digits and inner '-', '_', '.'.
func isLabelValue(s string) bool {
	if s == "" || len(s) > 63 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		alphanumeric := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		inner := i > 0 && i < len(s)-1 && (c == '-' || c == '_' || c == '.')
		if !alphanumeric && !inner {
			return false
		}
	}
	return true
}

// isQualifiedName reports whether s is a key of labels: a name, or a DNS subdomain,
// a slash and a name.
func isQualifiedName(s string) bool {
	prefix, name, found := strings.Cut(s, "/")
	if !found {
		return isLabelValue(s)
	}
	return isDNSSubdomain(prefix) && len(prefix) <= 253 && isLabelValue(name)
}
