package release

import "time"

// The parts of SPDX 2.3 that a bill of materials needs (spdx.github.io/spdx-spec/v2.3).
type (
	spdxDocument struct {
		Version       string             `json:"spdxVersion"`
		License       string             `json:"dataLicense"`
		ID            string             `json:"SPDXID"`
		Name          string             `json:"name"`
		Namespace     string             `json:"documentNamespace"`
		Creation      spdxCreation       `json:"creationInfo"`
		Packages      []spdxPackage      `json:"packages"`
		Relationships []spdxRelationship `json:"relationships"`
	}
	spdxCreation struct {
		Created  string   `json:"created"`
		Creators []string `json:"creators"`
	}
	spdxPackage struct {
		ID         string          `json:"SPDXID"`
		Name       string          `json:"name"`
		Version    string          `json:"versionInfo,omitempty"`
		File       string          `json:"packageFileName,omitempty"`
		Download   string          `json:"downloadLocation"`
		Analyzed   bool            `json:"filesAnalyzed"`
		Concluded  string          `json:"licenseConcluded"`
		Declared   string          `json:"licenseDeclared"`
		Copyright  string          `json:"copyrightText"`
		Comment    string          `json:"comment,omitempty"`
		Checksums  []spdxChecksum  `json:"checksums,omitempty"`
		References []spdxReference `json:"externalRefs"`
	}
	spdxChecksum struct {
		Algorithm string `json:"algorithm"`
		Value     string `json:"checksumValue"`
	}
	spdxReference struct {
		Category string `json:"referenceCategory"`
		Type     string `json:"referenceType"`
		Locator  string `json:"referenceLocator"`
	}
	spdxRelationship struct {
		Element string `json:"spdxElementId"`
		Type    string `json:"relationshipType"`
		Related string `json:"relatedSpdxElement"`
	}
)

const (
	spdxUnknown = "NOASSERTION"
	spdxSelf    = "SPDXRef-DOCUMENT"
	spdxRoot    = "SPDXRef-artefact"
)

// spdx returns the bill of materials as an SPDX document: the artefact contains every part.
func (m material) spdx() spdxDocument {
	root := newSPDXPackage(spdxRoot, m.name, m.version, m.purl)
	root.File, root.Declared = m.file, license
	root.Checksums = []spdxChecksum{{"SHA256", m.sum}}
	d := spdxDocument{
		Version: "SPDX-2.3", License: "CC0-1.0", ID: spdxSelf, Name: m.file,
		Namespace: "https://spdx.org/spdxdocs/" + m.file + "-" + m.identifier("spdx"),
		Creation: spdxCreation{m.made.Format(time.RFC3339),
			[]string{"Organization: " + producer, "Tool: hsm-signer-release-" + m.version}},
		Packages:      []spdxPackage{root},
		Relationships: []spdxRelationship{{spdxSelf, "DESCRIBES", spdxRoot}},
	}
	for _, p := range m.parts {
		id := "SPDXRef-" + p.reference()
		one := newSPDXPackage(id, p.name, p.version, p.purl)
		if p.hash != "" {
			one.Comment = "go.sum: " + p.hash
		}
		d.Packages = append(d.Packages, one)
		d.Relationships = append(d.Relationships, spdxRelationship{spdxRoot, "CONTAINS", id})
	}
	return d
}

func newSPDXPackage(id, name, version, purl string) spdxPackage {
	return spdxPackage{ID: id, Name: name, Version: version, Download: spdxUnknown,
		Concluded: spdxUnknown, Declared: spdxUnknown, Copyright: spdxUnknown,
		References: []spdxReference{{"PACKAGE-MANAGER", "purl", purl}}}
}
