// Package accesslog writes one line for each finished exchange.
//
// Log owns the lines that are not written yet, at most a given number of bytes of
// them. Any goroutine adds; one goroutine, in Run, writes. When the writer is too
// slow or fails, lines are lost and counted; nobody ever waits for it.
//
// What clients sent is written so that it cannot end a line, forge a field or reach
// a terminal as anything but printable ASCII.
package accesslog
