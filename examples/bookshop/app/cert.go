package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"time"

	"github.com/spf13/cobra"
)

func certCommand() *cobra.Command {
	var secret, namespace, ca string
	cmd := &cobra.Command{
		Use:     "cert HOSTNAME...",
		Short:   "Make a self-signed certificate as a Secret, for a day",
		Example: "  app cert --secret shop-tls -n bookshop --ca ca.pem shop.example > secret.yaml",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, hosts []string) error {
			cert, key, err := selfSigned(hosts)
			if err != nil {
				return err
			}
			if ca != "" {
				if err := os.WriteFile(ca, cert, 0o644); err != nil {
					return err
				}
			}
			b64 := base64.StdEncoding.EncodeToString
			_, err = fmt.Fprintf(cmd.OutOrStdout(), `apiVersion: v1
kind: Secret
metadata:
  name: %s
  namespace: %s
type: kubernetes.io/tls
data:
  tls.crt: %s
  tls.key: %s
`, secret, namespace, b64(cert), b64(key))
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&secret, "secret", "tls", "the Secret's name")
	f.StringVarP(&namespace, "namespace", "n", "default", "the Secret's namespace")
	f.StringVar(&ca, "ca", "", "also write the certificate to this PEM file, for clients to trust")
	return cmd
}

func selfSigned(hosts []string) (cert, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: hosts[0]},
		DNSNames:              hosts,
		NotBefore:             time.Now().Add(-time.Minute),
		NotAfter:              time.Now().Add(24 * time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		return nil, nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), nil
}
