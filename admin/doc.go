// Package admin is the conversation between a person's command and the processes
// of a node: the answers as Go types, the server that each process runs on a unix
// socket for root only, and the client.
//
// It owns the socket and nothing that it shows: a process hands it a View. Run
// has one goroutine for each request. A view that fails fails its own request
// only; a caller that is not root is refused before it is heard.
package admin
