package conditions

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// The condition of a Pod that a standalone node probes.
const (
	ConditionProbed        = "Probed"
	ReasonUnsupportedProbe = "UnsupportedProbe"
)

// NotProbed says that a Pod's readiness probe cannot be made.
func NotProbed(generation int64, message string) metav1.Condition {
	return New(ConditionProbed, false, ReasonUnsupportedProbe, generation, message)
}
