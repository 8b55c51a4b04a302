// Package api holds the protobuf definitions of sluice.v1 and, under sluice/v1,
// the Go code generated from them. It has no logic.
//
// "go generate ./xds/api" reproduces the generated code byte for byte. It needs
// the protoc of Debian 12 (package protobuf-compiler); protoc-gen-go is built
// from the google.golang.org/protobuf that go.mod names.
package api

//go:generate go run ./genproto
