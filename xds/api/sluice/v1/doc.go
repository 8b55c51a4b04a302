// Package sluicev1 is the messages of sluice.v1: what Envoy's API has no type for,
// sent on the same delta ADS stream. It is generated from the .proto files beside
// it and owns nothing.
package sluicev1
