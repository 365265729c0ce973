"""What tests of several areas share: event loops, leak checks, gateways, kernelspecs."""
