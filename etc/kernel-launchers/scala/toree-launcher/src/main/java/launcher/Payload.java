package launcher;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.ByteArrayOutputStream;
import java.nio.charset.StandardCharsets;
import java.security.GeneralSecurityException;
import java.security.KeyFactory;
import java.security.PublicKey;
import java.security.SecureRandom;
import java.security.spec.MGF1ParameterSpec;
import java.security.spec.X509EncodedKeySpec;
import java.util.Base64;
import java.util.LinkedHashMap;
import java.util.Map;
import javax.crypto.Cipher;
import javax.crypto.Mac;
import javax.crypto.spec.GCMParameterSpec;
import javax.crypto.spec.OAEPParameterSpec;
import javax.crypto.spec.PSource;
import javax.crypto.spec.SecretKeySpec;

/**
 * What the launcher sends to the gateway's response address; docs/developers/launcher-protocol.md has the format.
 *
 * <p>Version 2 is used when the gateway gave the launch a secret, version 1 otherwise.
 */
final class Payload {
    private static final byte[] LABEL = ascii("EG-payload-v2");
    private static final ObjectMapper JSON = new ObjectMapper();
    private static final SecureRandom RANDOM = new SecureRandom();

    private final String kernelId;
    private final PublicKey publicKey;

    /** Reads the gateway's key from its form on the command line: X.509 SubjectPublicKeyInfo in base64. */
    Payload(String kernelId, String publicKey) throws GeneralSecurityException {
        this.kernelId = kernelId;
        byte[] der = Base64.getDecoder().decode(publicKey);
        this.publicKey = KeyFactory.getInstance("RSA").generatePublic(new X509EncodedKeySpec(der));
    }

    /** Encrypts the connection information; {@code secret} is null for version 1. */
    byte[] encode(Map<String, Object> connection, byte[] secret) throws GeneralSecurityException {
        byte[] plain = json(connection);
        byte[] message = json(secret == null ? version1(plain) : version2(plain, secret));
        return Base64.getEncoder().encode(message);
    }

    private Map<String, Object> version1(byte[] plain) throws GeneralSecurityException {
        byte[] key = random(16);
        Cipher rsa = Cipher.getInstance("RSA/ECB/PKCS1Padding");
        rsa.init(Cipher.ENCRYPT_MODE, publicKey, RANDOM);
        Cipher aes = Cipher.getInstance("AES/ECB/PKCS5Padding");
        aes.init(Cipher.ENCRYPT_MODE, new SecretKeySpec(key, "AES"));
        Map<String, Object> message = new LinkedHashMap<>();
        message.put("version", 1);
        message.put("key", base64(rsa.doFinal(key)));
        message.put("conn_info", base64(aes.doFinal(plain)));
        return message;
    }

    private Map<String, Object> version2(byte[] plain, byte[] secret) throws GeneralSecurityException {
        byte[] contentKey = random(32);
        byte[] nonce = random(12);
        Cipher rsa = Cipher.getInstance("RSA/ECB/OAEPPadding");
        rsa.init(
                Cipher.ENCRYPT_MODE,
                publicKey,
                // JCE's "OAEPWithSHA-256AndMGF1Padding" takes SHA-1 for MGF1 unless told otherwise.
                new OAEPParameterSpec("SHA-256", "MGF1", MGF1ParameterSpec.SHA256, PSource.PSpecified.DEFAULT),
                RANDOM);
        String key = base64(rsa.doFinal(contentKey));
        Map<String, Object> message = new LinkedHashMap<>();
        message.put("version", 2);
        message.put("kernel_id", kernelId);
        message.put("key", key);
        message.put("nonce", base64(nonce));
        message.put("conn_info", base64(seal(plain, secret, contentKey, nonce, kernelId, key)));
        return message;
    }

    /** The authenticated part of version 2: ciphertext and tag over {@code plain}, the kernel id and the key. */
    static byte[] seal(
            byte[] plain, byte[] secret, byte[] contentKey, byte[] nonce, String kernelId, String key)
            throws GeneralSecurityException {
        Cipher aes = Cipher.getInstance("AES/GCM/NoPadding");
        aes.init(
                Cipher.ENCRYPT_MODE,
                new SecretKeySpec(hmac(secret, join(LABEL, contentKey)), "AES"),
                new GCMParameterSpec(128, nonce));
        byte[] zero = {0};
        aes.updateAAD(join(LABEL, zero, ascii(kernelId), zero, ascii(key)));
        return aes.doFinal(plain);
    }

    /** HMAC-SHA256. */
    static byte[] hmac(byte[] key, byte[] message) throws GeneralSecurityException {
        Mac mac = Mac.getInstance("HmacSHA256");
        mac.init(new SecretKeySpec(key, "HmacSHA256"));
        return mac.doFinal(message);
    }

    static byte[] ascii(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    private static byte[] join(byte[]... parts) {
        ByteArrayOutputStream joined = new ByteArrayOutputStream();
        for (byte[] part : parts) {
            joined.write(part, 0, part.length);
        }
        return joined.toByteArray();
    }

    private static byte[] random(int length) {
        byte[] bytes = new byte[length];
        RANDOM.nextBytes(bytes);
        return bytes;
    }

    private static String base64(byte[] bytes) {
        return Base64.getEncoder().encodeToString(bytes);
    }

    private static byte[] json(Map<String, Object> value) {
        try {
            return JSON.writeValueAsBytes(value);
        } catch (JsonProcessingException e) {
            // Without the cause: its message may quote the value, which holds the kernel's key.
            throw new IllegalStateException("The connection information cannot be written as JSON");
        }
    }
}
