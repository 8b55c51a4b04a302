// Package trace carries W3C trace context through the proxy and makes spans of the
// requests that are sampled.
//
// The header fields are parsed and written in place and cost no memory. A sampled
// request is a Request, which belongs to the loop that carries it until Tracer.Finish
// takes it; from there one goroutine, in Tracer.Run, makes spans of it with the
// OpenTelemetry SDK and exports them by OTLP. Nobody waits for the receiver: what does
// not fit into the queue, and what the receiver does not take, is lost and counted.
//
// A request is one span of kind SERVER, and each try of it a child of kind CLIENT,
// whose identifier is what the endpoint gets as its parent: retries are siblings, and
// the endpoint's own span hangs below the try that reached it.
package trace
