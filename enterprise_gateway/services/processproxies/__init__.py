"""What each back end means (layer 2): the public process-proxy classes that kernelspecs name."""
