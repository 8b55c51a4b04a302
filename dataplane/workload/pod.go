package workload

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/sluice-mesh/sluice/mesh"
)

const podSuffix = ".yaml"

func (r *Registry) podFile(name mesh.Name) string {
	return filepath.Join(r.podDir, fileName(name)+podSuffix)
}

func (r *Registry) writePod(s *Sandbox) error {
	return replaceFile(r.podFile(s.Spec.Name), PodYAML(s))
}

// pod is the part of a Kubernetes v1 Pod that a workload fills in.
type pod struct {
	APIVersion string      `json:"apiVersion"`
	Kind       string      `json:"kind"`
	Metadata   podMetadata `json:"metadata"`
	Spec       podSpec     `json:"spec"`
	Status     podStatus   `json:"status"`
}

type podMetadata struct {
	Namespace         string            `json:"namespace"`
	Name              string            `json:"name"`
	UID               string            `json:"uid"`
	Labels            map[string]string `json:"labels,omitempty"`
	Annotations       map[string]string `json:"annotations,omitempty"`
	CreationTimestamp time.Time         `json:"creationTimestamp"`
}

type podSpec struct {
	ServiceAccountName string         `json:"serviceAccountName"`
	NodeName           string         `json:"nodeName"`
	RestartPolicy      string         `json:"restartPolicy"`
	DNSPolicy          string         `json:"dnsPolicy"`
	Containers         []podContainer `json:"containers"`
}

type podContainer struct {
	Name    string    `json:"name"`
	Image   string    `json:"image"`
	Command []string  `json:"command,omitempty"`
	Ports   []podPort `json:"ports,omitempty"`
}

type podPort struct {
	Name          string `json:"name,omitempty"`
	ContainerPort uint16 `json:"containerPort"`
	Protocol      string `json:"protocol"`
}

type podStatus struct {
	Phase             string               `json:"phase"`
	Conditions        []podCondition       `json:"conditions"`
	PodIP             string               `json:"podIP"`
	PodIPs            []podIP              `json:"podIPs"`
	StartTime         time.Time            `json:"startTime"`
	ContainerStatuses []podContainerStatus `json:"containerStatuses"`
}

type podCondition struct {
	Type   string `json:"type"`
	Status string `json:"status"`
}

type podIP struct {
	IP string `json:"ip"`
}

type podContainerStatus struct {
	Name         string         `json:"name"`
	Ready        bool           `json:"ready"`
	Started      bool           `json:"started"`
	RestartCount int            `json:"restartCount"`
	Image        string         `json:"image"`
	ImageID      string         `json:"imageID"`
	State        map[string]any `json:"state"`
}

// podUID returns a UUID (RFC 9562 §5.8) that no other workload has: no namespace of
// a machine's uptime has another's cookie.
func podUID(s *Sandbox) string {
	u := sha256.Sum256(fmt.Appendf(nil, "%s %s %d %d", s.Node, s.Spec.Name, s.NetnsCookie, s.Created.Unix()))
	u[6], u[8] = u[6]&0x0f|0x80, u[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:16])
}

// PodYAML returns the workload as a Kubernetes Pod, which is what the control plane
// learns of it. The registry keeps it in RunDir/pods/NAMESPACE_NAME.yaml. It is
// Pending until the command was started, then Running and Ready.
func PodYAML(s *Sandbox) []byte {
	const container, image = "main", "sluice.dev/process"
	p := pod{
		APIVersion: "v1", Kind: "Pod",
		Metadata: podMetadata{
			Namespace: s.Spec.Name.Namespace, Name: s.Spec.Name.Name, Labels: s.Spec.Labels, Annotations: s.Spec.Annotations,
			UID:               podUID(s),
			CreationTimestamp: s.Created,
		},
		Spec: podSpec{
			ServiceAccountName: s.Spec.ServiceAccount, NodeName: s.Node, RestartPolicy: "Never", DNSPolicy: "ClusterFirst",
			Containers: []podContainer{{Name: container, Image: image, Command: s.Spec.Command}},
		},
		Status: podStatus{Phase: "Pending", StartTime: s.Created},
	}
	for _, port := range s.Spec.Ports {
		p.Spec.Containers[0].Ports = append(p.Spec.Containers[0].Ports,
			podPort{Name: port.Name, ContainerPort: port.Port, Protocol: port.Protocol.String()})
	}
	for _, addr := range s.Addresses {
		p.Status.PodIPs = append(p.Status.PodIPs, podIP{IP: addr.String()})
	}
	if len(p.Status.PodIPs) > 0 {
		p.Status.PodIP = p.Status.PodIPs[0].IP
	}
	started, state := "False", map[string]any{"waiting": map[string]any{"reason": "ContainerCreating"}}
	ready := s.Ready()
	if ready {
		p.Status.Phase, started = "Running", "True"
		state = map[string]any{"running": map[string]any{"startedAt": s.Created}}
	}
	p.Status.Conditions = []podCondition{
		{Type: "PodScheduled", Status: "True"}, {Type: "Initialized", Status: "True"},
		{Type: "ContainersReady", Status: started}, {Type: "Ready", Status: started},
	}
	p.Status.ContainerStatuses = []podContainerStatus{{
		Name: container, Image: image, Ready: ready, Started: ready, State: state,
	}}
	// JSON is YAML (YAML 1.2 §1.3). Nothing in p can fail to encode.
	var b strings.Builder
	encoder := json.NewEncoder(&b)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(p); err != nil {
		panic(err)
	}
	return []byte(b.String())
}
