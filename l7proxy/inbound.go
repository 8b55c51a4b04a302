package l7proxy

// startInbound begins the journey of a connection to one of a workload's own
// ports: it is relayed there, seen but not judged.
func (d *downConn) startInbound() { d.startTunnel() }
