package release

import "time"

// The parts of CycloneDX 1.6 that a bill of materials needs (cyclonedx.org/docs/1.6/json).
type (
	cdxDocument struct {
		Schema       string          `json:"$schema"`
		Format       string          `json:"bomFormat"`
		Spec         string          `json:"specVersion"`
		Serial       string          `json:"serialNumber"`
		Version      int             `json:"version"`
		Metadata     cdxMetadata     `json:"metadata"`
		Components   []cdxComponent  `json:"components"`
		Dependencies []cdxDependency `json:"dependencies"`
	}
	cdxMetadata struct {
		Timestamp string       `json:"timestamp"`
		Tools     cdxTools     `json:"tools"`
		Component cdxComponent `json:"component"`
	}
	cdxTools struct {
		Components []cdxComponent `json:"components"`
	}
	cdxComponent struct {
		Type       string        `json:"type"`
		Reference  string        `json:"bom-ref,omitempty"`
		Name       string        `json:"name"`
		Version    string        `json:"version,omitempty"`
		PURL       string        `json:"purl,omitempty"`
		Hashes     []cdxHash     `json:"hashes,omitempty"`
		Licenses   []cdxLicense  `json:"licenses,omitempty"`
		Properties []cdxProperty `json:"properties,omitempty"`
	}
	cdxHash struct {
		Algorithm string `json:"alg"`
		Content   string `json:"content"`
	}
	cdxLicense struct {
		License struct {
			ID string `json:"id"`
		} `json:"license"`
	}
	cdxProperty struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	}
	cdxDependency struct {
		Reference string   `json:"ref"`
		DependsOn []string `json:"dependsOn,omitempty"`
	}
)

// cycloneDX returns the bill of materials as a CycloneDX document: the artefact depends on every
// part.
func (m material) cycloneDX() cdxDocument {
	root := cdxComponent{Type: m.kind(), Reference: "artefact", Name: m.name, Version: m.version,
		PURL: m.purl, Hashes: []cdxHash{{"SHA-256", m.sum}}, Licenses: make([]cdxLicense, 1)}
	root.Licenses[0].License.ID = license
	d := cdxDocument{
		Schema: "http://cyclonedx.org/schema/bom-1.6.schema.json", Format: "CycloneDX", Spec: "1.6",
		Serial: "urn:uuid:" + m.identifier("cyclonedx"), Version: 1,
		Metadata: cdxMetadata{Timestamp: m.made.Format(time.RFC3339), Component: root,
			Tools: cdxTools{[]cdxComponent{{Type: "application", Name: "hsm-signer-release",
				Version: m.version}}}},
	}
	all := cdxDependency{Reference: root.Reference}
	for _, p := range m.parts {
		one := cdxComponent{Type: "library", Reference: p.reference(), Name: p.name,
			Version: p.version, PURL: p.purl}
		if p.hash != "" {
			one.Properties = []cdxProperty{{"hsm-signer:go.sum", p.hash}}
		}
		d.Components = append(d.Components, one)
		d.Dependencies = append(d.Dependencies, cdxDependency{Reference: one.Reference})
		all.DependsOn = append(all.DependsOn, one.Reference)
	}
	d.Dependencies = append(d.Dependencies, all)
	return d
}

// kind returns the type of the artefact's component.
func (m material) kind() string {
	if m.image {
		return "container"
	}
	return "application"
}
