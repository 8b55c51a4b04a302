// Package flow is the record of one thing that happened to a connection or a
// request on a node, with its verdict and the reason for it.
//
// It owns the vocabulary of refusals: one Reason feeds the kernel programs, the
// flow, the access log, the metric label, the response header and the CLI. The
// C header of the kernel programs is generated from it (go generate).
package flow

//go:generate go run ./genreason -o ../../bpf/include/reason.h -doc ../../docs/reference/reasons.md
