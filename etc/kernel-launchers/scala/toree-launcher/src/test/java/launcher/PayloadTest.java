package launcher;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.security.GeneralSecurityException;
import java.security.KeyPair;
import java.security.KeyPairGenerator;
import java.security.spec.MGF1ParameterSpec;
import java.util.Base64;
import java.util.Map;
import javax.crypto.AEADBadTagException;
import javax.crypto.Cipher;
import javax.crypto.spec.GCMParameterSpec;
import javax.crypto.spec.OAEPParameterSpec;
import javax.crypto.spec.PSource;
import javax.crypto.spec.SecretKeySpec;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;

class PayloadTest {
    private static final ObjectMapper JSON = new ObjectMapper();
    private static final Map<String, Object> CONNECTION = Map.of("kernel_id", "kid", "shell_port", 40001);
    private static KeyPair keys;

    @BeforeAll
    static void makeKeys() throws GeneralSecurityException {
        KeyPairGenerator generator = KeyPairGenerator.getInstance("RSA");
        generator.initialize(2048);
        keys = generator.generateKeyPair();
    }

    private static JsonNode sent(byte[] secret) throws GeneralSecurityException, IOException {
        String key = Base64.getEncoder().encodeToString(keys.getPublic().getEncoded());
        byte[] wire = new Payload("kid", key).encode(CONNECTION, secret);
        return JSON.readTree(Base64.getDecoder().decode(wire));
    }

    private static byte[] bytes(JsonNode message, String name) {
        return Base64.getDecoder().decode(message.get(name).textValue());
    }

    @Test
    void version1IsWhatOlderGatewaysRead() throws Exception {
        JsonNode message = sent(null);
        assertEquals(1, message.get("version").intValue());
        Cipher rsa = Cipher.getInstance("RSA/ECB/PKCS1Padding");
        rsa.init(Cipher.DECRYPT_MODE, keys.getPrivate());
        Cipher aes = Cipher.getInstance("AES/ECB/PKCS5Padding");
        aes.init(Cipher.DECRYPT_MODE, new SecretKeySpec(rsa.doFinal(bytes(message, "key")), "AES"));
        assertEquals(JSON.valueToTree(CONNECTION), JSON.readTree(aes.doFinal(bytes(message, "conn_info"))));
    }

    private static byte[] open(JsonNode message, String kernelId, String secret) throws Exception {
        Cipher rsa = Cipher.getInstance("RSA/ECB/OAEPPadding");
        rsa.init(
                Cipher.DECRYPT_MODE,
                keys.getPrivate(),
                new OAEPParameterSpec("SHA-256", "MGF1", MGF1ParameterSpec.SHA256, PSource.PSpecified.DEFAULT));
        byte[] contentKey = rsa.doFinal(bytes(message, "key"));
        byte[] labelled = new byte[13 + 32];
        System.arraycopy(Payload.ascii("EG-payload-v2"), 0, labelled, 0, 13);
        System.arraycopy(contentKey, 0, labelled, 13, 32);
        Cipher aes = Cipher.getInstance("AES/GCM/NoPadding");
        aes.init(
                Cipher.DECRYPT_MODE,
                new SecretKeySpec(Payload.hmac(Payload.ascii(secret), labelled), "AES"),
                new GCMParameterSpec(128, bytes(message, "nonce")));
        aes.updateAAD(Payload.ascii("EG-payload-v2\0" + kernelId + "\0" + message.get("key").textValue()));
        return aes.doFinal(bytes(message, "conn_info"));
    }

    @Test
    void version2OpensWithTheSecretAndTheKernelIdOnly() throws Exception {
        JsonNode message = sent(Payload.ascii("secret"));
        assertEquals(2, message.get("version").intValue());
        assertEquals("kid", message.get("kernel_id").textValue());
        assertEquals(JSON.valueToTree(CONNECTION), JSON.readTree(open(message, "kid", "secret")));
        assertThrows(AEADBadTagException.class, () -> open(message, "kid", "another secret"));
        assertThrows(AEADBadTagException.class, () -> open(message, "another", "secret"));
    }

    @Test
    void noTwoMessagesShareAKey() throws Exception {
        assertFalse(sent(null).equals(sent(null)));
    }

    @Test
    void sealsTheSharedVector() throws Exception {
        byte[] contentKey = new byte[32];
        byte[] nonce = new byte[12];
        for (int i = 0; i < 32; i++) {
            contentKey[i] = (byte) i;
        }
        for (int i = 0; i < 12; i++) {
            nonce[i] = (byte) (0xa0 + i);
        }
        byte[] sealed = Payload.seal(
                Payload.ascii("{\"kernel_id\": \"kid\"}"), Payload.ascii("secret"), contentKey, nonce, "kid", "S0VZ");
        assertArrayEquals(Base64.getDecoder().decode(VECTOR), sealed);
    }

    private static final String VECTOR = "Xj7AaPiNbhd7/1r8UqTbINmfsRzeL1sh7oHjVCSg2cbiFq3q";
}
