package dashboard

import "encoding/json"

// panel is one picture of the dashboard.
type panel struct {
	title, description string
	unit               string // of Grafana: "reqps", "s", "percentunit", "Bps", "short", "ops"
	wide               bool
	queries            []query
}

// query is one expression with the legend of its series.
type query struct{ expr, legend string }

// row is a titled group of panels.
type row struct {
	title  string
	panels []panel
}

// The variables of the dashboard: $route, $source and $destination are regular
// expressions, $instance the nodes.
const (
	scope     = `instance=~"$instance"`
	requests  = scope + `, route=~"$route", source=~"$source", destination=~"$destination"`
	rate      = "[$__rate_interval]"
	quantiles = `sum by (le, route) (rate(sluice_proxy_request_duration_seconds_bucket{` + scope + `, route=~"$route"}` + rate + `))`
)

func rows() []row {
	return []row{
		{"Requests", []panel{
			{"Requests", "Requests per second by route.", "reqps", false, []query{
				{`sum by (route) (rate(sluice_proxy_requests_total{` + requests + `}` + rate + `))`, "{{route}}"}}},
			{"Failed requests", "Share of the requests that were answered with 5xx, or failed.", "percentunit", false, []query{
				{`sum by (route) (rate(sluice_proxy_requests_total{` + requests + `, code_class=~"5xx|none"}` + rate + `)) / sum by (route) (rate(sluice_proxy_requests_total{` + requests + `}` + rate + `))`, "{{route}}"}}},
			{"Latency, median", "From a request's head to its response's end.", "s", false, []query{
				{`histogram_quantile(0.5, ` + quantiles + `)`, "{{route}}"}}},
			{"Latency, 99th percentile", "From a request's head to its response's end.", "s", false, []query{
				{`histogram_quantile(0.99, ` + quantiles + `)`, "{{route}}"}}},
			{"Who asks whom", "Requests per second between workloads.", "reqps", true, []query{
				{`sum by (source, destination) (rate(sluice_proxy_requests_total{` + requests + `}` + rate + `))`, "{{source}} → {{destination}}"}}},
			{"Classes of status", "Requests per second by class of the status sent.", "reqps", false, []query{
				{`sum by (code_class) (rate(sluice_proxy_requests_total{` + requests + `}` + rate + `))`, "{{code_class}}"}}},
			{"Refusals and failures", "Requests per second that the proxy refused or that failed, by reason.", "reqps", false, []query{
				{`sum by (reason) (rate(sluice_proxy_requests_total{` + requests + `, reason!=""}` + rate + `))`, "{{reason}}"}}},
			{"Retries", "Tries that were repeated: by a rule, or because that was safe.", "ops", false, []query{
				{`sum (rate(sluice_proxy_retries_total{` + scope + `}` + rate + `))`, "by a rule"},
				{`sum (rate(sluice_proxy_repeats_total{` + scope + `}` + rate + `))`, "safe to repeat"}}},
			{"Requests under way", "", "short", false, []query{
				{`sum by (journey) (sluice_proxy_requests_active{` + scope + `})`, "{{journey}}"}}},
		}},
		{"Connections", []panel{
			{"Open connections", "Connections of clients that the proxy holds.", "short", false, []query{
				{`sum by (journey) (sluice_proxy_connections_active{` + scope + `})`, "{{journey}}"}}},
			{"New connections", "", "ops", false, []query{
				{`sum by (journey) (rate(sluice_proxy_connections_total{` + scope + `}` + rate + `))`, "{{journey}}"}}},
			{"Bytes", "Bodies and raw connections.", "Bps", false, []query{
				{`sum by (direction) (rate(sluice_proxy_bytes_total{` + scope + `}` + rate + `))`, "{{direction}}"}}},
			{"Connections to endpoints", "Attempts, and those that failed.", "ops", false, []query{
				{`sum (rate(sluice_proxy_upstream_connects_total{` + scope + `}` + rate + `))`, "attempts"},
				{`sum (rate(sluice_proxy_upstream_connect_failures_total{` + scope + `}` + rate + `))`, "failed"}}},
		}},
		{"Flows", []panel{
			{"Drops", "Connections and requests that were refused or failed, kernel and proxy together.", "ops", true, []query{
				{`sum by (reason, protocol) (rate(sluice_drops_total{` + scope + `}` + rate + `))`, "{{reason}} {{protocol}}"}}},
			{"Flows", "", "ops", false, []query{
				{`sum by (type, verdict) (rate(sluice_flows_total{` + scope + `}` + rate + `))`, "{{type}} {{verdict}}"}}},
			{"Lost flows", "Events that could not be recorded, by where they were lost.", "ops", false, []query{
				{`sum by (source) (rate(sluice_flows_lost_total{` + scope + `}` + rate + `))`, "{{source}}"}}},
			{"DNS answers", "", "ops", false, []query{
				{`sum by (rcode) (rate(sluice_dns_answers_total{` + scope + `}` + rate + `))`, "{{rcode}}"}}},
			{"Traces", "Spans exported, and lost.", "ops", false, []query{
				{`sum (rate(sluice_trace_spans_exported_total{` + scope + `}` + rate + `))`, "exported"},
				{`sum by (cause) (rate(sluice_trace_spans_lost_total{` + scope + `}` + rate + `))`, "lost: {{cause}}"}}},
		}},
		{"Node", []panel{
			{"Kernel maps", "How full the kernel's maps are.", "percentunit", false, []query{
				{`sluice_kernel_map_entries{` + scope + `} / sluice_kernel_map_capacity{` + scope + `}`, "{{instance}} {{map}}"}}},
			{"Control plane", "1: connected.", "short", false, []query{
				{`min by (instance) (sluice_xds_client_connected{` + scope + `})`, "{{instance}}"}}},
			{"Refused configuration", "Resources of the control plane that a node refused.", "short", false, []query{
				{`sum by (kind) (increase(sluice_xds_client_rejected_total{` + scope + `}` + rate + `))`, "{{kind}}"}}},
			{"Packets", "Packets of workloads by what became of them.", "pps", false, []query{
				{`sum by (outcome) (rate(sluice_workload_packets_total{` + scope + `}` + rate + `))`, "{{outcome}}"}}},
		}},
	}
}

// Dashboard returns the dashboard as Grafana imports it. The data source is asked for.
func Dashboard() ([]byte, error) {
	type object = map[string]any
	const width = 24
	source := object{"type": "prometheus", "uid": "${datasource}"}
	var panels []object
	id, y := 0, 0
	next := func() int { id++; return id }
	for _, r := range rows() {
		panels = append(panels, object{"id": next(), "type": "row", "title": r.title, "collapsed": false, "gridPos": object{"x": 0, "y": y, "w": width, "h": 1}})
		y++
		x := 0
		for _, p := range r.panels {
			w := width / 2
			if p.wide {
				w = width
			}
			if x+w > width {
				x, y = 0, y+8
			}
			targets := make([]object, len(p.queries))
			for i, q := range p.queries {
				targets[i] = object{"refId": string(rune('A' + i)), "expr": q.expr, "legendFormat": q.legend, "datasource": source}
			}
			panels = append(panels, object{
				"id": next(), "type": "timeseries", "title": p.title, "description": p.description, "datasource": source,
				"gridPos": object{"x": x, "y": y, "w": w, "h": 8}, "targets": targets,
				"fieldConfig": object{"defaults": object{"unit": p.unit, "min": 0}, "overrides": []object{}},
			})
			x += w
		}
		y += 8
	}
	variable := func(name, label, expr string) object {
		return object{
			"name": name, "label": label, "type": "query", "datasource": source, "query": expr, "definition": expr,
			"refresh": 2, "sort": 1, "multi": true, "includeAll": true, "allValue": ".*",
			"current": object{"text": "All", "value": "$__all"},
		}
	}
	out, err := json.MarshalIndent(object{
		"uid": "sluice", "title": "Sluice", "tags": []string{"sluice", "service mesh"}, "schemaVersion": 39, "editable": true,
		"time": object{"from": "now-1h", "to": "now"}, "refresh": "30s", "panels": panels,
		"templating": object{"list": []object{
			{"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
			variable("instance", "Node", "label_values(sluice_build_info, instance)"),
			variable("route", "Route", "label_values(sluice_proxy_requests_total, route)"),
			variable("source", "Source", "label_values(sluice_proxy_requests_total, source)"),
			variable("destination", "Destination", "label_values(sluice_proxy_requests_total, destination)"),
		}},
	}, "", "  ")
	return append(out, '\n'), err
}
