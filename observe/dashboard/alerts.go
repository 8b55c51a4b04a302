package dashboard

import "sigs.k8s.io/yaml"

// rule is one alert of Prometheus.
type rule struct {
	Alert       string            `json:"alert"`
	Expr        string            `json:"expr"`
	For         string            `json:"for,omitempty"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

func alert(name, severity, wait, expr, summary, cure string) rule {
	return rule{
		Alert: name, Expr: expr, For: wait, Labels: map[string]string{"severity": severity},
		Annotations: map[string]string{"summary": summary, "description": cure},
	}
}

func alerts() []rule {
	return []rule{
		alert("SluiceRouteFailing", "critical", "5m",
			`sum by (route) (rate(sluice_proxy_requests_total{code_class=~"5xx|none", route!=""}[5m])) / sum by (route) (rate(sluice_proxy_requests_total{route!=""}[5m])) > 0.05`,
			"{{ $value | humanizePercentage }} of the requests of {{ $labels.route }} fail",
			"`sluice observe --route NAMESPACE/NAME --http-status 5+` shows them, with reason and endpoint."),
		alert("SluiceRouteSlow", "warning", "10m",
			`histogram_quantile(0.99, sum by (le, route) (rate(sluice_proxy_request_duration_seconds_bucket{route!=""}[5m]))) > 2.5`,
			"one in a hundred requests of {{ $labels.route }} takes longer than {{ $value | humanizeDuration }}",
			"`sluice observe --route NAMESPACE/NAME --min-latency 2s` shows them."),
		alert("SluiceNoHealthyEndpoint", "critical", "2m",
			`sum by (route) (rate(sluice_proxy_requests_total{reason="no-healthy-endpoint"}[5m])) > 0`,
			"requests of {{ $labels.route }} find no healthy endpoint",
			"`sluice service list` shows the endpoints of each Service."),
		alert("SluiceRetriesHigh", "warning", "10m",
			`sum by (instance) (rate(sluice_proxy_retries_total[5m])) / sum by (instance) (rate(sluice_proxy_requests_total[5m])) > 0.2`,
			"the proxy of {{ $labels.instance }} repeats {{ $value | humanizePercentage }} of its requests",
			"Retries multiply the load of an endpoint that fails: `sluice observe` shows the number of tries of each request."),
		alert("SluiceUpstreamConnectFailing", "warning", "5m",
			`sum by (instance) (rate(sluice_proxy_upstream_connect_failures_total[5m])) / sum by (instance) (rate(sluice_proxy_upstream_connects_total[5m])) > 0.1`,
			"{{ $value | humanizePercentage }} of the connections to endpoints fail on {{ $labels.instance }}",
			"`sluice observe --reason connect-failed --reason connect-timeout` names the endpoints."),
		alert("SluiceProxyUnavailable", "critical", "1m",
			`sum by (instance) (rate(sluice_drops_total{reason="proxy-unavailable"}[1m])) > 0`,
			"connections on {{ $labels.instance }} are refused because no proxy serves",
			"`sluice status` says what the proxy waits for."),
		alert("SluiceFlowsLost", "info", "10m",
			`sum by (instance, source) (rate(sluice_flows_lost_total{source!="ring"}[5m])) > 0`,
			"flows of {{ $labels.instance }} are lost ({{ $labels.source }})",
			"Traffic goes on; `sluice observe` does not show all of it."),
		alert("SluiceSpansLost", "warning", "10m",
			`sum by (instance, cause) (rate(sluice_trace_spans_lost_total[5m])) > 0`,
			"spans of {{ $labels.instance }} are lost ({{ $labels.cause }})",
			"full: fewer requests should be sampled (--trace-sampling, sluice.dev/trace-sampling); failed: the OTLP receiver does not take them, the proxy's log says why."),
		alert("SluiceAccessLogLost", "warning", "5m",
			`sum by (instance, cause) (rate(sluice_accesslog_lost_total[5m])) > 0`,
			"lines of the access log of {{ $labels.instance }} are lost ({{ $labels.cause }})",
			"What reads the log is too slow or the disk is full; --access-log-min-status makes it shorter."),
		alert("SluiceSeriesOverflow", "warning", "10m",
			`sum by (instance) (rate(sluice_proxy_series_overflow_total[10m])) > 0`,
			"the proxy of {{ $labels.instance }} has too many series; requests count as other",
			"See the bound in docs/reference/metrics.md."),
		alert("SluiceConfigurationRejected", "warning", "0s",
			`sum by (instance, kind) (increase(sluice_xds_client_rejected_total[10m])) > 0`,
			"{{ $labels.instance }} refuses configuration of kind {{ $labels.kind }}",
			"The status of the object says why; its last good form is in use."),
		alert("SluiceControlPlaneAway", "warning", "5m",
			`min by (instance) (sluice_xds_client_connected) == 0`,
			"{{ $labels.instance }} has no connection to the control plane",
			"Its last good configuration stays in use, and changes do not arrive."),
		alert("SluiceKernelMapFull", "critical", "5m",
			`sluice_kernel_map_entries / sluice_kernel_map_capacity > 0.9`,
			"the kernel map {{ $labels.map }} of {{ $labels.instance }} is {{ $value | humanizePercentage }} full",
			"Services beyond it are not balanced; sluice_kernel_services_failed counts them."),
		alert("SluiceServicesNotProgrammed", "critical", "5m",
			`sluice_kernel_services_failed > 0`,
			"{{ $value }} services are not in the kernel's tables of {{ $labels.instance }}",
			"The agent's log names them."),
	}
}

// Alerts returns the alerts as a file of rules for Prometheus.
func Alerts() ([]byte, error) {
	type group struct {
		Name  string `json:"name"`
		Rules []rule `json:"rules"`
	}
	out, err := yaml.Marshal(map[string]any{"groups": []group{{"sluice", alerts()}}})
	return append([]byte("# Generated from observe/dashboard by go generate; do not edit.\n"), out...), err
}
