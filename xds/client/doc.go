// Package client keeps a node's store equal to what the control plane publishes
// and the node asked for, by delta ADS.
package client
