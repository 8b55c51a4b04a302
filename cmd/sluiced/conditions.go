package main

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-mesh/sluice/admin"
)

// conditions returns the conditions of an object as the admin socket shows them.
func conditions(in []metav1.Condition) []admin.Condition {
	var out []admin.Condition
	for _, c := range in {
		out = append(out, admin.Condition{Type: c.Type, Status: string(c.Status), Reason: c.Reason, Message: c.Message})
	}
	return out
}
