// Command sluice is what a person asks a node with: it starts workloads and shows
// what the processes of the node do.
//
// It keeps nothing of its own. Each command asks the admin sockets of the running
// processes, by package admin, and prints the answer.
package main

//go:generate go run . docs --output ../../docs/reference/cli.md
