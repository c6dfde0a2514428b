package legacyapi

import "strings"

// oldGroups changes the list of all API groups to that of an old server.
func oldGroups(list map[string]any) {
	groups, _ := list["groups"].([]any)
	for _, group := range groups {
		if group, ok := group.(map[string]any); ok && group["name"] == "certificates.k8s.io" {
			oldGroup(group)
		}
	}
}

// oldGroup leaves v1beta1 as the only version of the group certificates.k8s.io.
func oldGroup(group map[string]any) {
	version := map[string]any{"groupVersion": oldVersion, "version": "v1beta1"}
	group["versions"] = []any{version}
	group["preferredVersion"] = version
}

// oldResources keeps the resources of v1 that v1beta1 had.
func oldResources(list map[string]any) {
	list["groupVersion"] = oldVersion
	var kept []any
	resources, _ := list["resources"].([]any)
	for _, resource := range resources {
		resource, ok := resource.(map[string]any)
		if !ok {
			continue
		}
		if name, _ := resource["name"].(string); strings.HasPrefix(name, requests) {
			kept = append(kept, resource)
		}
	}
	list["resources"] = kept
}
